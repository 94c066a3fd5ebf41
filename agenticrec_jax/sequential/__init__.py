"""Recommenders over item sequences: SASRec with its losses, training, search and evaluation."""
