"""The learner's step, the stages, checkpoints and metrics."""
