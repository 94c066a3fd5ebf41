"""Kernels behind the models' layers that only some devices have."""
