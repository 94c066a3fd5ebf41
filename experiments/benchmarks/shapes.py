"""Shapes of published models, by their config.json (https://huggingface.co/Qwen), and of ours.

``REFERENCE`` is the policy of 27.3M parameters of the timed rollouts and updates. ``WIDE`` is the
same with Qwen3's vocabulary.
"""

from dataclasses import replace

from agenticrec_jax.models.config import Qwen3Config


def _qwen3(hidden: int, mlp: int, layers: int, heads: int, tied: bool) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=151936,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=128,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        max_position_embeddings=40960,
    )


QWEN3 = {
    "Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, True),
    "Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, True),
    "Qwen3-4B": _qwen3(2560, 9728, 36, 32, True),
    "Qwen3-8B": _qwen3(4096, 12288, 36, 32, False),
    "Qwen3-14B": _qwen3(5120, 17408, 40, 40, False),
    "Qwen3-32B": _qwen3(5120, 25600, 64, 64, False),
}

REFERENCE = Qwen3Config(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1536,
    num_layers=8,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    max_position_embeddings=4096,
)
WIDE = replace(REFERENCE, vocab_size=QWEN3["Qwen3-0.6B"].vocab_size)
