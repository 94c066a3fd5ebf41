"""Ranking metrics and their confidence intervals: functions of arrays, on the host."""
