"""What every program sets up alike: the log, frozen candidates, artefacts, agents, the engine."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict, config_flags

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.prompts import PromptBuilder
from agenticrec_jax.data.candidates import (
    candidate_hash,
    draw_split_candidates,
    read_candidates,
    write_candidates,
)
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog, read_log
from agenticrec_jax.data.splits import FitRange, Splits, chronological_splits, prediction_samples
from agenticrec_jax.errors import InputError
from agenticrec_jax.generation.engine import Engine, EngineConfig
from agenticrec_jax.models.hf import load_policy
from agenticrec_jax.models.sasrec import SasrecConfig
from agenticrec_jax.models.tokenizers import CompactTokenizer, load_tokenizer
from agenticrec_jax.tools.artifacts import Artifacts
from agenticrec_jax.tools.base import Toolbox
from agenticrec_jax.tools.registry import agenticrec_tools
from agenticrec_jax.tools.text import ToolOptions
from agenticrec_jax.training.metrics import Progress
from agenticrec_jax.training.sasrec import SasrecTraining, fit_artifacts

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("policy", "valid", "test")
LONGEST_PROMPT = 512  # cache columns are bounded by this and by the completion budget


def define_config(default: str):
    """The flag --config of a program; ``path.py:preset`` chooses a preset of the file."""
    return config_flags.DEFINE_config_file("config", str(ROOT / default), "Configuration file.")


@dataclasses.dataclass(frozen=True)
class World:
    """The data of a run: the log, its splits, the frozen examples by part, and their hash."""

    config: ConfigDict
    workdir: Path
    log: InteractionLog
    splits: Splits
    examples: dict[str, list[RankingExample]]
    candidate_hash: str

    def by_id(self, part: str) -> dict[int, RankingExample]:
        """Examples of a part by their id."""
        return {example.example_id: example for example in self.examples[part]}


def make_workdir(path: str | None) -> Path:
    """The run's directory, made if need be; InputError if no directory can be there."""
    if not path:
        raise InputError("flag --workdir: found nothing, expected a directory for the run's files")
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"flag --workdir: found {path!r}, expected a directory that can be made "
            f"({error.strerror})"
        ) from error
    return directory


def resolve(path: str) -> Path:
    """A path as given, or, where that does not exist, below the repository's root."""
    given = Path(path)
    return given if given.is_absolute() or given.exists() else ROOT / given


def prepare(config: ConfigDict, workdir: Path) -> World:
    """Reads the log and freezes the candidates into ``workdir``, or reads them back from there."""
    data = config.dataset
    log = read_log(resolve(data.interactions), resolve(data["items"]))
    splits = chronological_splits(prediction_samples(log, data.max_history))
    path = workdir / "candidates.jsonl.gz"
    if not path.exists():
        drawn = draw_split_candidates(log, splits, data.negatives, seed=data.candidate_seed)
        write_candidates(path, log, drawn, seed=data.candidate_seed)
    frozen = read_candidates(path, log)
    examples = {part: [e for e in frozen if e.split == part] for part in PARTS}
    return World(config, workdir, log, splits, examples, candidate_hash(path))


def artifacts_a(world: World) -> Artifacts:
    """What serves the policy while it trains: fitted before the first policy sample."""
    return _artifacts(world, "a", world.splits.fit_range_a)


def artifacts_b(world: World) -> Artifacts:
    """What serves valid and test: fitted before the first valid sample."""
    return _artifacts(world, "b", world.splits.fit_range_b)


def _artifacts(world: World, name: str, fit_range: FitRange) -> Artifacts:
    settings = world.config.sasrec
    directory = world.workdir / f"artifacts_{name}"
    made = directory / "made.json"
    record = json.dumps({"log": world.log.fingerprint, "sasrec": settings.to_dict()})
    if made.exists() and made.read_text() == record:
        return Artifacts.load(directory, world.log)
    model = SasrecConfig(
        world.log.num_items, world.config.dataset.max_history, settings.dim, settings.blocks,
        settings.heads, settings.dropout,
    )  # fmt: skip
    training = SasrecTraining(epochs=settings.epochs, seed=settings.seed)
    with Progress(f"sasrec {name}", training.epochs, unit="epochs") as progress:
        fitted = fit_artifacts(
            world.log,
            fit_range,
            config=model,
            training=training,
            on_epoch=lambda epoch, loss, now: progress.advance(note=f"loss {loss:.3f}"),
        )
    fitted.save(directory, world.log)
    made.write_text(record)
    return fitted


def toolbox(config: ConfigDict, artifacts: Artifacts) -> Toolbox:
    """The seven tools with the config's wording."""
    return agenticrec_tools(artifacts, ToolOptions(**config.tools))


@dataclasses.dataclass
class Policy:
    """A loaded policy: its static half, its parameters in the config's dtype, its tokenizer."""

    graphdef: nnx.GraphDef
    params: nnx.State
    tokenizer: CompactTokenizer


def load(directory: str, dtype: str = "float32", mesh=None) -> Policy:
    """Loads a policy directory and checks that tokenizer and embedding fit together."""
    path = resolve(directory)
    model = load_policy(path, mesh=mesh, dtype=dtype)
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise InputError(
            f"{path}/tokenizer.model: found {tokenizer.vocab_size} pieces, expected at most the "
            f"embedding's {model.config.vocab_size} rows"
        )
    return Policy(*nnx.split(model), tokenizer)


def copied(params):
    """A copy on device: the learner takes its parameters over, and these are needed again."""
    return jax.tree.map(jnp.copy, params)


def agent(world: World, artifacts: Artifacts, tokenizer: CompactTokenizer, **options) -> Agent:
    """The agent that a run of ``world`` uses; ``options`` are fields of ``Agent``."""
    prompts = PromptBuilder(tokenizer, world.log.items, world.config.policy.title_tokens)
    return Agent(world.log, toolbox(world.config, artifacts), artifacts, prompts, **options)


def engine(config: ConfigDict, policy: Policy, mesh=None) -> Engine:
    """The rollout engine; a row ends at ``</answer>`` and pauses at ``</tool_call>``."""
    settings = config.engine
    sizes = EngineConfig(
        slots=settings.slots,
        prompt_buckets=tuple(settings.prompt_buckets),
        splice_buckets=tuple(settings.splice_buckets),
        max_tokens=settings.max_tokens,
        decode_steps=settings.decode_steps,
    )
    marker = policy.tokenizer.marker
    return Engine(
        policy.graphdef,
        sizes,
        pause_id=marker("</tool_call>"),
        stop_ids=[marker("</answer>")],
        pad_id=policy.tokenizer.pad_id,
        mesh=mesh,
    )


def protocol(world: World, split: str, seeds: Sequence[int]) -> dict:
    """What every number is printed with."""
    data = world.config.dataset
    return {
        "dataset": data.name,
        "split": split,
        "negatives": data.negatives,
        "candidate_hash": world.candidate_hash,
        "candidate_seed": data.candidate_seed,
        "seeds": list(seeds),
    }


def chosen(examples: Sequence[RankingExample], count: int) -> list[RankingExample]:
    """``count`` examples evenly spread over time, all of them for 0."""
    if not count or count >= len(examples):
        return list(examples)
    return [examples[i * len(examples) // count] for i in range(count)]
