"""Services of a run: checkpoints, metric logging, progress and termination."""
