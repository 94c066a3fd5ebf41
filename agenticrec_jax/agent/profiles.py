"""Long-term profiles, written offline by the policy's base model with the rollout engine.

The model reads the user's own events before the example's position, through the same as-of view as
a tool, and writes freely: groups of one, no tools. AgenticRec section 3 has its profiles generated
so; the words of the question are ours.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from agenticrec_jax.agent.episodes import turn_end
from agenticrec_jax.agent.prompts import PromptBuilder
from agenticrec_jax.agent.protocol import CALL_OPEN
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.errors import InputError
from agenticrec_jax.generation.engine import Engine, Reply, Request, Rollout
from agenticrec_jax.tokenizers.base import BROKEN, CUT, Tokenizer, neutralize
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.tools.profiles import Profile
from agenticrec_jax.types import CALLED, STOP

_THOUGHT = "</think>"


@dataclasses.dataclass(frozen=True)
class ProfileWriter:
    """Writes profiles of examples with ``engine``, whose ``max_tokens`` is the budget of a text.

    A prompt shows at most ``events`` of the user's newest events (0 for all), and fewer where the
    engine's longest prompt has no room for them. ``words`` is the length asked for. ``temperature``
    0 is greedy; otherwise a text depends on ``seed`` and the prompt. So examples of one prompt, say
    of users who took one and the same item, share a text, and it is written once.
    """

    log: InteractionLog
    prompts: PromptBuilder
    engine: Engine
    events: int
    words: int
    temperature: float
    seed: int

    def prompt(self, example: RankingExample) -> list[int]:
        """Prompt ids of an example.

        Raises:
          InputError: if the engine's longest prompt has no room for a single event.
        """
        view = AsOfView(self.log, example)
        room = self.engine.config.prompt_buckets[-1]
        items, ratings = view.own_items[-self.events :], view.own_ratings[-self.events :]
        while items:
            ids = self.prompts.profile(items, ratings, self.words)
            if len(ids) <= room:
                return ids
            items, ratings = items[1:], ratings[1:]
        raise InputError(
            f"engine.prompt_buckets: found {room} tokens for the prompt of a profile, expected at "
            f"least the {len(ids)} of one event"
        )

    def write(
        self, params, examples: Sequence[RankingExample], known: Iterable[Profile] = ()
    ) -> list[Profile]:
        """The examples' profiles, in their order; a prompt that is a known one's has its text.

        ``known`` are profiles that a writer with the same settings and parameters wrote.
        """
        prompts = [tuple(self.prompt(example)) for example in examples]
        contents = [content_hash(prompt) for prompt in prompts]
        texts = {profile.content: (profile.text, profile.finish) for profile in known}
        waiting = {c: p for c, p in zip(contents, prompts, strict=True) if c not in texts}
        requests = [Request(prompt, 1, (int(c[:8], 16),)) for c, prompt in waiting.items()]
        sampling = {"temperature": self.temperature, "seed": self.seed}
        rows = self.engine.generate(params, requests, self._respond, **sampling) if requests else []
        for content, (row,) in zip(waiting, rows, strict=True):
            texts[content] = profile_text(self.prompts.tokenizer, row), row.finish
        return [
            Profile(e.example_id, e.position, content, *texts[content])
            for e, content in zip(examples, contents, strict=True)
        ]

    def _respond(self, request: int, member: int, ids: Sequence[int]) -> Reply:
        """Ends a row that pauses: at its turn's end, or at a call that nobody answers."""
        del request, member
        tokenizer = self.prompts.tokenizer
        return Reply((), turn_end(tokenizer, ids[-1], tokenizer.decode(ids)))


def content_hash(prompt: Sequence[int]) -> str:
    """16 hex digits of the sha256 of a prompt's ids."""
    return hashlib.sha256(np.asarray(prompt, "<i4").tobytes()).hexdigest()[:16]


def profile_text(tokenizer: Tokenizer, rollout: Rollout) -> str:
    """What a rollout says, on one line: without the id that ended it, a closed thought or a call.

    It is data from here on: marker literals are made harmless, and a text that was cut, by its
    budget or otherwise, ends in the visible mark.
    """
    ended = rollout.finish in (STOP, CALLED)
    text = tokenizer.decode(rollout.ids[:-1] if ended else rollout.ids)
    if rollout.finish == CALLED:
        text = text.partition(CALL_OPEN)[0]
    text = text.rpartition(_THOUGHT)[2]
    text = neutralize(" ".join(text.rstrip(BROKEN).split()))
    return text if ended else text + CUT
