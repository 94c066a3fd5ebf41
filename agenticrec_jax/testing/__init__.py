"""Small models, tokenizers, logs and runs for tests, those of the users of the package too."""
