"""Configurations as ml_collections files: ``--config=NAME:PRESET``."""
