"""AgenticRec and RecThinker in JAX: LLM recommender agents trained end to end."""
