"""Preparation of raw logs: sources, events, catalog, filters and the report of what was dropped."""
