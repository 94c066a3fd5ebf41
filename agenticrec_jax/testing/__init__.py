"""Tiny models, tokenizers and logs for tests."""
