"""A stand-in for the rollout engine, which writes scripted turns, and what the tests script."""

import numpy as np

from agenticrec_jax.agent.episodes import Agent, run_episodes
from agenticrec_jax.agent.prompts import CompactPrompts
from agenticrec_jax.agent.protocol import ToolCall, render_ranking
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.generation.engine import Rollout
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.types import OBSERVATION, SAMPLED

LOOK = f"<think>look</think>{ToolCall('candidates_analyze', {}).render()}"


class Actor:
    """Stands in for the engine: member ``m`` writes the turns of script ``m``."""

    def __init__(self, tokenizer, *scripts):
        self.tokenizer = tokenizer
        self.scripts = scripts

    def generate(
        self,
        params,
        requests,
        respond,
        *,
        temperature,
        seed,
        on_failure,
        on_rollout,
        filters=None,
        arrivals=None,
    ):
        groups = [
            [self._play(i, m, respond, self._opening(request, m)) for m in range(request.members)]
            for i, request in enumerate(requests)
        ]
        for i, group in enumerate(groups):
            for m, rollout in enumerate(group):
                on_rollout(i, m, rollout)
        return groups

    def _opening(self, request, member):
        return list(request.openings[member]) if request.openings else []

    def _play(self, request, member, respond, ids):
        origin = [OBSERVATION] * len(ids)
        finish = "token_budget"
        for turn in self.scripts[member]:
            written = self.tokenizer.encode_markup(turn)
            ids += written
            origin += [SAMPLED] * len(written)
            if not turn.endswith("</tool_call>"):
                finish = "stop"
                break
            reply = respond(request, member, ids)
            if reply.on_accept is not None:
                reply.on_accept()
            ids += reply.ids
            origin += [OBSERVATION] * len(reply.ids)
            if reply.finish:
                finish = reply.finish
                break
        return Rollout(
            ids=np.array(ids, np.int32),
            logprobs=np.zeros(len(ids), np.float32),
            origin=np.array(origin, np.uint8),
            finish=finish,
        )


def tiny_agent(**options):
    """The agent of the tiny world; ``options`` are fields of ``Agent``."""
    world = tiny_world()
    prompts = CompactPrompts(world.tokenizer, world.log.items, 4)
    return Agent(world.log, world.toolbox, world.artifacts, prompts, **options)


def play(agent, *scripts, task=None, **options):
    """One trajectory of the first example, or of ``task``, for each script."""
    task = task or Task(tiny_world().examples[0])
    actor = Actor(agent.prompts.tokenizer, *scripts)
    options = {"members": len(scripts), "temperature": 1.0, "seed": 0} | options
    (group,) = run_episodes(agent, actor, None, [task], **options)
    return group


def list_with_target_at(rank):
    """A valid answer to the first example with the target at ``rank``, a miss beyond 10."""
    target = tiny_world().examples[0].target_number
    others = [number for number in range(1, 21) if number != target]
    return render_ranking([*others[: rank - 1], target, *others[rank - 1 :]][:10])
