"""The policy: Qwen3, attention, masks, rotary positions, adapters, kernels, files in and out."""
