"""Baselines on the candidate lists of the policy. Axes: ``examples``, C candidates."""
