"""Readers of formats that the package itself does not need."""
