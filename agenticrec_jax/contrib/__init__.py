"""Readers of formats that the package itself does not need: GGUF, and SmolLM2 in it."""
