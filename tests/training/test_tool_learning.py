"""An agent learns by reinforcement alone which of its tools holds the answer, and then needs it.

The embedded tiny policy can call the seven tools and copy an order of candidates that it names;
whom to ask and what to follow it was taught to draw at random, on another log. Here all orders that
the tools show are drawn at random, but one tool's has the target first.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.interventions import BLANK
from agenticrec_jax.agent.prompts import CompactPrompts
from agenticrec_jax.agent.scripted import ORDERS
from agenticrec_jax.data.candidates import draw_split_candidates
from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.evaluation.evaluator import evaluate
from agenticrec_jax.generation.engine import Engine, EngineConfig
from agenticrec_jax.losses import for_batch, grpo_loss
from agenticrec_jax.metrics.ranking import expected_metrics, ndcg_at_k
from agenticrec_jax.models.io.huggingface import load_policy
from agenticrec_jax.runtime.metric_logging import MetricsWriter
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log
from agenticrec_jax.tokenizers.load import load_tokenizer
from agenticrec_jax.tools.artifacts import Artifacts, index_users
from agenticrec_jax.tools.base import Toolbox
from agenticrec_jax.tools.registry import agenticrec_tools
from agenticrec_jax.tools.statistics import fit_statistics
from agenticrec_jax.training.learner import init_state, make_optimizer, make_update
from agenticrec_jax.training.loop import Stage, reinforce
from agenticrec_jax.training.packing import Packing
from agenticrec_jax.training.tasks import ranking_tasks

POLICY = Path(__file__).parents[2] / "tools_data" / "tiny_policy"
STEPS, PROMPTS, MEMBERS, HELD_OUT = 8, 8, 8, 400
CHANCE = expected_metrics(20)["ndcg@10"]


@dataclasses.dataclass(frozen=True)
class Scripted:
    """A tool that answers by a given function."""

    name: str
    description: str
    parameters: dict[str, Any]
    says: Callable

    def __call__(self, view, **arguments):
        return self.says(view, arguments)


def order(view, label, first=None):
    """Ten candidates in an order drawn anew for each example; number ``first`` leads, if given."""
    rng = np.random.default_rng((view.example_id, *label.encode()))
    numbers = rng.permutation(np.arange(1, len(view.candidates) + 1)).tolist()
    numbers.sort(key=lambda number: number != first)
    return f"{label}:{''.join(f'{number},' for number in numbers[:10])}"


@dataclasses.dataclass
class World:
    """A synthetic log, and agents for whom ``holder`` shows an order with the target first."""

    seed: int
    holder: str

    def __post_init__(self):
        self.log = synthetic_log(SyntheticConfig(users=1300, items=300), seed=self.seed)
        splits = chronological_splits(prediction_samples(self.log))
        sasrec = Sasrec(SasrecConfig(300, width=8, blocks=1, heads=2), rngs=nnx.Rngs(1))
        fitted = splits.fit_range_a
        statistics, index = fit_statistics(self.log, fitted), index_users(sasrec, self.log, fitted)
        self.artifacts = Artifacts(statistics, index, fitted)
        names = ("policy", "test")
        drawn = draw_split_candidates(self.log, splits, seed=self.seed, split_names=names)
        self.targets = {example.example_id: example.target_number for example in drawn}
        self.taught = [example for example in drawn if example.split == "policy"]
        self.held_out = [example for example in drawn if example.split == "test"][:HELD_OUT]

    def agent(self, tokenizer, blanked: bool = False) -> Agent:
        """With ``blanked`` the holder finds nothing; the others go on as before."""
        real = agenticrec_tools(self.artifacts)
        tools = [
            Scripted(**schema, says=self._says(real, schema["name"], blanked))
            for schema in real.schemas()
        ]
        prompts = CompactPrompts(tokenizer, self.log.items, title_tokens=0)
        return Agent(self.log, Toolbox(tools), self.artifacts, prompts)

    def _says(self, real: Toolbox, name: str, blanked: bool) -> Callable:
        if name not in ORDERS:
            return lambda view, arguments: real.call(view, name, arguments).text
        if name == self.holder and blanked:
            return lambda view, arguments: BLANK
        targets = self.targets if name == self.holder else {}
        return lambda view, arguments: "; ".join(
            order(view, label, targets.get(view.example_id)) for label in ORDERS[name]
        )


def make_engine(graphdef, tokenizer) -> Engine:
    sizes = EngineConfig(
        slots=PROMPTS * MEMBERS,
        prompt_buckets=(80,),
        splice_buckets=(32,),
        max_tokens=160,
        row_buckets=(PROMPTS * MEMBERS,),
        window_buckets=(240,),
    )
    pause, stops, pad = tokenizer.pause_id, tokenizer.stop_ids, tokenizer.pad_id
    return Engine(graphdef, sizes, pause_id=pause, stop_ids=stops, pad_id=pad)


def train(world: World, graphdef, params, engine: Engine, agent: Agent, directory: Path):
    """The parameters after ``STEPS`` updates of the paper's list-wise stage."""
    optimizer = make_optimizer(3e-4, warmup_steps=2)
    update = make_update(graphdef, for_batch(grpo_loss, normalizer=100.0), optimizer)
    packing = Packing(16_384, (80,), (160,), pad_id=agent.prompts.tokenizer.pad_id)
    stage = Stage(
        "rta", steps=STEPS, members=MEMBERS, temperature=1.0, seed=world.seed, packing=packing
    )
    with MetricsWriter(directory) as writer:
        state = init_state(jax.tree.map(jax.numpy.copy, params), optimizer)
        state = reinforce(
            stage,
            state,
            agent=agent,
            engine=engine,
            update=update,
            tasks_at=ranking_tasks(world.taught, PROMPTS, world.seed),
            writer=writer,
        )
        return state.params


def ndcg(trajectories) -> float:
    return ndcg_at_k(np.array([t.rank or 0 for t in trajectories]), 10)


def share_calling(trajectories, name: str) -> float:
    return float(np.mean([any(call.name == name for call in t.calls) for t in trajectories]))


@pytest.mark.slow
@pytest.mark.parametrize("seed,holder", [(0, "get_similar_items")])
def test_the_policy_learns_to_ask_the_tool_that_knows(tmp_path, seed, holder):
    """On held-out examples: little of it before, the answer after, and chance without that tool."""
    world, tokenizer = World(seed, holder), load_tokenizer(POLICY)
    graphdef, params = nnx.split(load_policy(POLICY, dtype="float32"))
    engine, agent = make_engine(graphdef, tokenizer), world.agent(tokenizer)
    before = evaluate(agent, engine, params, world.held_out)
    params = train(world, graphdef, params, engine, agent, tmp_path)
    after = evaluate(agent, engine, params, world.held_out)
    blanked = evaluate(world.agent(tokenizer, blanked=True), engine, params, world.held_out)
    for name, actual in {"before": before, "after": after, "blanked": blanked}.items():
        calling = share_calling(actual, holder)
        print(f"seed {seed}, {name}: ndcg@10 {ndcg(actual):.4f}, {holder} {calling:.3f}")
    assert len(world.held_out) == HELD_OUT
    assert ndcg(before) < 0.5 and share_calling(before, holder) < 0.5
    assert ndcg(after) >= 0.9 and share_calling(after, holder) > 0.95
    assert abs(ndcg(blanked) - CHANCE) < 0.05
