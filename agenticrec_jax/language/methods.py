"""Methods of ranking by a language model that is not trained, by the names of their rows."""

from collections.abc import Sequence
from typing import Protocol

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.language.answers import Answer
from agenticrec_jax.language.completion import Completer, Decoding
from agenticrec_jax.language.interecagent import InteRecAgent
from agenticrec_jax.language.llmrank import LLMRank

METHODS = {"llmrank": LLMRank, "interecagent": InteRecAgent}


class Method(Protocol):
    """Interface of a method: a function of completions, the same for every model.

    Attributes:
      decoding: of its completions.
    """

    decoding: Decoding

    def rank(
        self,
        completer: Completer,
        examples: Sequence[RankingExample],
    ) -> list[Answer]:
        """Returns one answer to each example, in their order; invalid ones among them.

        Args:
          completer: the model.
          examples: to rank.
        """
        ...
