"""Losses and advantages: arrays in, arrays and metrics out."""
