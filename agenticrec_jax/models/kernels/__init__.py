"""Kernels behind the models' layers, each for one kind of device."""
