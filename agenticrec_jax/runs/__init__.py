"""Construction of a run from its configuration."""
