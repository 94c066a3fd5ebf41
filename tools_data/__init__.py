"""Builders of the embedded samples, and the samples themselves."""
