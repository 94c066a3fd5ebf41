"""The Qwen3 policy, SASRec, checkpoints in and out, tokenizers."""
