"""Token sampling and the rollout engine."""
