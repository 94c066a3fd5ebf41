"""Pure ranking metrics and significance tests."""
