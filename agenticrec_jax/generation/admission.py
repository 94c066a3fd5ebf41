"""Admission of requests to a call of the engine."""

from collections.abc import Sequence

from agenticrec_jax.errors import expect
from agenticrec_jax.generation.config import EngineConfig
from agenticrec_jax.generation.constraint import MAX_NUMBER
from agenticrec_jax.generation.requests import Request


class Admission:
    """Refuses requests that do not fit the engine, the model or the call's first request.

    Args:
      config: sizes of the engine.
      context: the model's positions.
      vocabulary: number of the model's ids.
      constrained: whether the engine has a constraint.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        context: int,
        vocabulary: int,
        constrained: bool,
    ):
        longest = longest_prompt(config, context)
        why = f", one less than the model's {context} positions" if longest == context - 1 else ""
        self._length = f"1 to {longest} tokens{why}"
        self._longest = longest
        self._most = config.max_tokens - 1
        self._vocabulary = vocabulary
        self._constrained = constrained
        self._checked = 0  # requests of the call so far
        self._key_numbers: int | None = None  # of the first request's key

    def check(self, requests: Sequence[Request]) -> None:
        """Checks the call's next requests.

        Raises:
          InputError: one does not fit; names its index in the call.
        """
        for request in requests:
            self._check(request, f"request {self._checked}: ")
            self._checked += 1

    def _check(self, request: Request, where: str) -> None:
        tokens = len(request.prompt)
        in_length = 1 <= tokens <= self._longest
        expect(in_length, where + "length of the prompt", tokens, self._length)
        expect(request.members >= 1, where + "members", request.members, "at least 1")
        if self._key_numbers is None:
            self._key_numbers = len(request.key)
        like_first = f"{self._key_numbers} numbers, as in request 0"
        expect(len(request.key) == self._key_numbers, where + "key", request.key, like_first)
        small = all(0 <= number < 2**32 for number in request.key)
        expect(small, where + "key", request.key, "numbers from 0 to 2**32 - 1")
        openings = request.openings
        each = f"none, or one for each of {request.members} members"
        expect(len(openings) in (0, request.members), where + "openings", len(openings), each)
        longest_opening = max(map(len, openings), default=0)
        fits = f"at most {self._most} ids, one less than max_tokens"
        expect(longest_opening <= self._most, where + "openings", longest_opening, fits)
        if self._constrained:
            expect(not any(openings), where + "openings", openings, "none with a constraint")
            choices = f"0 (a free answer) to {MAX_NUMBER}"
            in_range = 0 <= request.choices <= MAX_NUMBER
            expect(in_range, where + "choices", request.choices, choices)
        ids = f"ids from 0 to {self._vocabulary - 1}"
        for name, text in [("prompt", request.prompt), *(("openings", o) for o in openings)]:
            wrong = next((i for i in text if not 0 <= i < self._vocabulary), None)
            expect(wrong is None, where + name, wrong, ids)


def longest_prompt(config: EngineConfig, context: int) -> int:
    """Returns the tokens of the longest prompt that a call takes.

    Args:
      config: sizes of the engine.
      context: the model's positions, of which one is left for a token of the completion.
    """
    return min(config.prompt_buckets[-1], context - 1)
