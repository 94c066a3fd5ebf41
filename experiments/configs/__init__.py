"""Configurations as ml_collections files: ``--config=experiments/configs/office.py:preset``."""
