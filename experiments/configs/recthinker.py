"""RecThinker's agent with a Qwen3-Instruct policy on the embedded Office log.

Its five tools and its Analyze-Plan-Act prompts run on the same executor as AgenticRec's. As in its
paper, ten candidates are ranked in full: one positive and nine negatives.
"""

from ml_collections import ConfigDict

from experiments.configs import qwen3


def get_config() -> ConfigDict:
    """The configuration; the policy's directory is one of the user's."""
    config = qwen3.get_config()
    config.agent = config.reward = "recthinker"
    config.dataset.negatives = 9
    config.policy.observation_tokens = 768  # a call may ask for several items
    return config
