"""Ranking metrics, the evaluator, significance and the report."""
