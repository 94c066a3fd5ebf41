"""AgenticRec and RecThinker in JAX: LLM recommender agents trained end to end."""

import importlib

__version__ = "0.2.0"

_LAZY = {
    "Recommender": "agenticrec_jax.serving.recommender",
    "fit_sasrec": "agenticrec_jax.sequential.fit",
    "load_adapters": "agenticrec_jax.models.io.peft",
    "load_policy": "agenticrec_jax.models.io.huggingface",
    "load_sample": "agenticrec_jax.data.samples",
    "read_log": "agenticrec_jax.data.interactions",
    "save_adapters": "agenticrec_jax.models.io.peft",
    "save_policy": "agenticrec_jax.models.io.huggingface",
}

__all__ = [
    "Recommender",
    "fit_sasrec",
    "load_adapters",
    "load_policy",
    "load_sample",
    "read_log",
    "save_adapters",
    "save_policy",
]


def __getattr__(name: str):
    """Public names load their module on first use, so that importing the package stays light."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(_LAZY[name]), name)
