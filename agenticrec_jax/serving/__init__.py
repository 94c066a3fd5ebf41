"""The agent in use: recommendations for users now, with the evidence and reasons behind them."""

from agenticrec_jax.serving.recommendations import Recommendation
from agenticrec_jax.serving.recommender import Recommender
from agenticrec_jax.serving.requests import Question

__all__ = ["Question", "Recommendation", "Recommender"]
