"""Tokenizers: the compact one, Hugging Face's, and plain sentencepiece."""
