"""Long-term profiles, generated offline by the policy's base model with the rollout engine.

The model reads the user's events before the example's position, through the same as-of view as a
tool, and writes freely, without tools. AgenticRec (arXiv:2603.21613), section 3, generates its
profiles so; the wording of the prompt is ours.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from agenticrec_jax.agent.episodes import turn_finish
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
    """Generates profiles of examples.

    A text depends on the prompt and the seed only. Examples with the same prompt, such as those of
    users who took the same single item, share a text, which is generated once.

    Attributes:
      log: the log of the examples.
      prompts: the prompt builder.
      engine: the rollout engine; its ``max_tokens`` limit a text.
      events: most of the user's newest events in a prompt, 0 for all; fewer if the engine's longest
        prompt has no room for them.
      words: requested length of a profile.
      temperature: sampling temperature; 0 is greedy.
      seed: seed of the sampling.
    """

    log: InteractionLog
    prompts: PromptBuilder
    engine: Engine
    events: int
    words: int
    temperature: float
    seed: int

    def prompt(self, example: RankingExample) -> list[int]:
        """Returns the prompt ids of an example.

        Raises:
          InputError: the engine's longest prompt has no room for a single event.
        """
        view = AsOfView(self.log, example)
        room = self.engine.config.prompt_buckets[-1]
        items = view.own_items[-self.events :]
        ratings = view.own_ratings[-self.events :]
        while items:
            ids = self.prompts.profile(items, ratings, self.words)
            if len(ids) <= room:
                return ids
            items = items[1:]
            ratings = ratings[1:]
        raise InputError(
            f"engine.prompt_buckets: found {room} tokens for the prompt of a profile, expected at "
            f"least the {len(ids)} of one event"
        )

    def write(
        self, params, examples: Sequence[RankingExample], known: Iterable[Profile] = ()
    ) -> list[Profile]:
        """Returns the profiles of examples, in their order.

        Args:
          params: parameters of the model, as ``nnx.split`` returns them.
          examples: the examples.
          known: profiles that a writer with the same settings and parameters generated. An example
            with the prompt of a known profile has its text.
        """
        prompts = [tuple(self.prompt(example)) for example in examples]
        contents = [content_hash(prompt) for prompt in prompts]
        texts = {profile.content: (profile.text, profile.finish) for profile in known}
        waiting = {c: p for c, p in zip(contents, prompts, strict=True) if c not in texts}
        requests = [Request(prompt, 1, (int(c[:8], 16),)) for c, prompt in waiting.items()]
        groups = []
        if requests:
            groups = self.engine.generate(
                params,
                requests,
                self._respond,
                temperature=self.temperature,
                seed=self.seed,
            )
        for content, (rollout,) in zip(waiting, groups, strict=True):
            texts[content] = (profile_text(self.prompts.tokenizer, rollout), rollout.finish)
        return [
            Profile(e.example_id, e.position, content, *texts[content])
            for e, content in zip(examples, contents, strict=True)
        ]

    def _respond(self, request: int, member: int, ids: Sequence[int]) -> Reply:
        """Ends a rollout that pauses, at the end of its turn or at a tool call."""
        del request, member
        tokenizer = self.prompts.tokenizer
        return Reply((), turn_finish(tokenizer, ids[-1], tokenizer.decode(ids)))


def content_hash(prompt: Sequence[int]) -> str:
    """Returns 16 hex digits of the sha256 of a prompt's ids."""
    return hashlib.sha256(np.asarray(prompt, "<i4").tobytes()).hexdigest()[:16]


def profile_text(tokenizer: Tokenizer, rollout: Rollout) -> str:
    """Returns the text of a rollout on one line, without a closed thought or a tool call.

    The text is data from here on: literal markers are neutralized, and a text that was cut, by its
    budget or otherwise, ends in the visible mark.
    """
    ended = rollout.finish in (STOP, CALLED)
    text = tokenizer.decode(rollout.ids[:-1] if ended else rollout.ids)
    if rollout.finish == CALLED:
        text = text.partition(CALL_OPEN)[0]
    text = text.rpartition(_THOUGHT)[2]
    text = neutralize(" ".join(text.rstrip(BROKEN).split()))
    return text if ended else text + CUT
