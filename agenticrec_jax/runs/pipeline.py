"""What every program sets up alike: the log, frozen candidates, artifacts, agents, the engine."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from agenticrec_jax.agent.answers import ranking_constraint
from agenticrec_jax.agent.chat import AGENTS, RECTHINKER
from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.prompts import PromptBuilder, make_prompts
from agenticrec_jax.bundled import ROOT, resolve
from agenticrec_jax.data.candidates import (
    candidate_hash,
    draw_split_candidates,
    read_candidates,
    read_protocol,
    write_candidates,
)
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog, Items, read_log
from agenticrec_jax.data.prepared import prepared_tables
from agenticrec_jax.data.splits import (
    FitRange,
    Splits,
    chronological_splits,
    leave_one_out,
    prediction_samples,
)
from agenticrec_jax.errors import InputError
from agenticrec_jax.generation.engine import Engine, EngineConfig
from agenticrec_jax.generation.sampling import Filters
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.parallel.multihost import local_mesh, main_writes, row_shards
from agenticrec_jax.runs import objectives
from agenticrec_jax.runs import plugins as own_tools
from agenticrec_jax.runs.policy import Policy, profile_model, weights_hash
from agenticrec_jax.runtime.progress import Progress
from agenticrec_jax.sequential.sasrec import SasrecConfig
from agenticrec_jax.sequential.training import SequentialTraining
from agenticrec_jax.tokenizers.base import Tokenizer
from agenticrec_jax.tools.artifacts import Artifacts, fit_artifacts
from agenticrec_jax.tools.base import Toolbox
from agenticrec_jax.tools.profiles import Profiles, read_profiles
from agenticrec_jax.tools.registry import agenticrec_tools, recthinker_tools
from agenticrec_jax.tools.text import ToolOptions
from agenticrec_jax.training.learner import Update, make_optimizer, make_update
from agenticrec_jax.training.logprobs import make_scorer
from agenticrec_jax.training.packing import Packing
from agenticrec_jax.training.references import Scorer

PARTS = ("policy", "valid", "test")
SPLITS = {"chronological": chronological_splits, "leave_one_out": leave_one_out}
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

    @functools.cached_property
    def profiles(self) -> Profiles | None:
        """The stored profiles that the config names, None where it names none.

        Raises:
          InputError: if the file is none, is of another log, or another model wrote it than the
            config's: its ``profiles.model``, or else its policy.
        """
        settings = self.config.profiles
        if not settings.file:
            return None
        profiles = read_profiles(resolve(settings.file))
        profiles.expect({"log": self.log.fingerprint}, "the log that is open")
        model = profile_model(self.config)
        because = f"the weights of {model} (config.profiles.model names others)"
        profiles.expect({"model_hash": weights_hash(resolve(model))}, because)
        return profiles


def make_workdir(path: str | Path | None) -> Path:
    """The run's directory, made if need be; InputError if no directory can be there."""
    if not path:
        raise InputError("flag --workdir: found nothing, expected a directory for the run's files")
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"flag --workdir: found {str(path)!r}, expected a directory that can be made "
            f"({error.strerror})"
        ) from error
    return directory


def prepare(config: ConfigDict, workdir: str | Path) -> World:
    """Reads the log and freezes the candidates into ``workdir``, or reads them back from there.

    The directory is made only when the log has been read and the candidates drawn. Tools of one's
    own that cannot be imported are refused before.
    """
    own_tools.makers(config)
    data = config.dataset
    tables = (resolve(data.interactions), resolve(data["items"]))
    if data.prepared:
        tables = prepared_tables(resolve(data.prepared))
    log = read_log(*tables)
    if data.split not in SPLITS:
        known = ", ".join(SPLITS)
        raise InputError(f"config.dataset.split: found {data.split!r}, expected one of {known}")
    splits = SPLITS[data.split](prediction_samples(log, data.max_history))
    path = Path(workdir) / "candidates.jsonl.gz"
    with main_writes("candidates") as writes:
        if writes and not path.exists():
            drawn = draw_split_candidates(log, splits, data.negatives, seed=data.candidate_seed)
            make_workdir(workdir)
            write_candidates(path, log, drawn, seed=data.candidate_seed)
    frozen = read_candidates(path, log)
    _check_protocol(path, data)
    examples = {part: [e for e in frozen if e.split == part] for part in PARTS}
    _check_parts(path, splits, examples)
    return World(config, path.parent, log, splits, examples, candidate_hash(path))


def _check_protocol(path: Path, data: ConfigDict) -> None:
    found = read_protocol(path)
    for name, expected in (("seed", data.candidate_seed), ("negatives", data.negatives)):
        if found[name] != expected:
            raise InputError(
                f"{path}: found candidates drawn with {name} {found[name]}, expected {expected}; "
                "name another --workdir"
            )


def _check_parts(path: Path, splits: Splits, examples: dict[str, list[RankingExample]]) -> None:
    for part, drawn in examples.items():
        samples = getattr(splits, part)
        if [e.position for e in drawn] != [s.position for s in samples]:
            raise InputError(
                f"{path}: found candidates of other {part} samples ({len(drawn)}), expected those "
                f"of the config's split ({len(samples)}); name another --workdir"
            )


def keep_settings(workdir: Path, settings: dict) -> None:
    """Writes a run's settings to ``settings.json``, or checks that they are those found there.

    Raises:
      InputError: if the run that made the directory had others: its files are of another run.
    """
    path = workdir / "settings.json"
    given = json.loads(json.dumps(settings))
    if not path.exists():
        path.write_text(json.dumps(given, indent=1) + "\n")
    found, given = _flat(json.loads(path.read_text())), _flat(given)
    for name in sorted(found.keys() | given.keys()):
        if found.get(name) != given.get(name):
            raise InputError(
                f"{path}: found {name}={found.get(name)!r}, expected {given.get(name)!r} as in "
                "this run; name another --workdir"
            )


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in tree.items():
        inside = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if inside else {f"{prefix}{name}": value}
    return flat


def artifacts_a(world: World) -> Artifacts:
    """What serves the policy while it trains: fitted before the first policy sample."""
    return _artifacts(world, "a", world.splits.fit_range_a)


def artifacts_b(world: World) -> Artifacts:
    """What serves valid and test: fitted before the first valid sample."""
    return _artifacts(world, "b", world.splits.fit_range_b)


def _artifacts(world: World, name: str, fit_range: FitRange) -> Artifacts:
    directory = world.workdir / f"artifacts_{name}"
    made = directory / "made.json"
    settings = world.config.sasrec.to_dict()
    record = {"log": world.log.fingerprint, "sasrec": settings, "format": Artifacts.FORMAT}
    record = json.dumps(record)
    with main_writes(f"artifacts {name}") as writes:
        if writes and not (made.exists() and made.read_text() == record):
            _fitted(world, name, fit_range).save(directory, world.log)
            made.write_text(record)
    return Artifacts.load(directory, world.log)


def _fitted(world: World, name: str, fit_range: FitRange) -> Artifacts:
    settings = world.config.sasrec
    model = SasrecConfig(
        world.log.num_items,
        world.config.dataset.max_history,
        settings.dim,
        settings.blocks,
        settings.heads,
        settings.dropout,
    )
    training = SequentialTraining(epochs=settings.epochs, seed=settings.seed)
    with Progress(f"sasrec {name}", training.epochs, unit="epochs") as progress:
        return fit_artifacts(
            world.log,
            fit_range,
            config=model,
            training=training,
            on_epoch=lambda epoch, loss, now: progress.advance(note=f"loss {loss:.3f}"),
        )


def toolbox(
    config: ConfigDict, artifacts: Artifacts, items: Items, profiles: Profiles | None = None
) -> Toolbox:
    """The tools of the config's agent in its wording, with stored profiles if there are any.

    Those of one's own follow, which ``config.tools.extra`` names.

    Raises:
        InputError: there is no such agent, or an extra tool is none.
    """
    if config.agent not in AGENTS:
        known = ", ".join(AGENTS)
        raise InputError(f"config.agent: found {config.agent!r}, expected one of {known}")
    options = ToolOptions(**{name: v for name, v in config.tools.items() if name != "extra"})
    if config.agent == RECTHINKER:
        box = recthinker_tools(items, artifacts, options, profiles)
    else:
        box = agenticrec_tools(artifacts, options, profiles)
    given = {"artifacts": artifacts, "items": items, "options": options, "profiles": profiles}
    return own_tools.added(box, config, given)


def device_mesh(config: ConfigDict) -> Mesh | None:
    """The config's mesh over all devices of all processes; None for one process on one device."""
    if jax.process_count() == 1 and set(config.mesh.values()) == {1}:
        return None
    return make_mesh(**config.mesh)


def agent(world: World, artifacts: Artifacts, tokenizer: Tokenizer, **options) -> Agent:
    """The agent that a run of ``world`` uses; ``options`` are fields of ``Agent``."""
    tools = toolbox(world.config, artifacts, world.log.items, world.profiles)
    judged = {"reward": objectives.reward(world.config)} | options
    return Agent(world.log, tools, artifacts, prompts(world, tokenizer), **judged)


def prompts(world: World, tokenizer: Tokenizer) -> PromptBuilder:
    """What renders prompts in the style of the config and the tokenizer."""
    settings = world.config.policy
    return make_prompts(
        tokenizer,
        world.log.items,
        settings.title_tokens,
        settings.prompt_style,
        settings.observation_style,
        settings.observation_tokens,
        world.config.agent,
    )


def engine(config: ConfigDict, policy: Policy, constrained: bool = False) -> Engine:
    """The rollout engine on this process's devices of the mesh.

    Where a row pauses and ends is the tokenizer's to say; where one id does both it pauses, and
    the episode ends it. A ``constrained`` one writes no invalid ranking.
    """
    sizes = EngineConfig(**config.engine)
    tokenizer = policy.tokenizer
    return Engine(
        policy.graphdef,
        sizes,
        pause_id=tokenizer.pause_id,
        stop_ids=[i for i in tokenizer.stop_ids if i != tokenizer.pause_id],
        pad_id=tokenizer.pad_id,
        mesh=local_mesh(device_mesh(config)),
        constraint=ranking_constraint(tokenizer) if constrained else None,
    )


def temperature(settings: ConfigDict) -> float:
    """What a stage of reinforcement samples at, and its learner scores at.

    Raises:
        InputError: the settings would also filter or constrain, which the learner does not know.
    """
    names = {field.name for field in dataclasses.fields(Filters)} & set(settings)
    on: dict = Filters(**{name: settings[name] for name in names}).on()
    on |= {"constrained": True} if settings.get("constrained") else {}
    for name, value in on.items():
        raise InputError(
            f"a training stage: found {name} {value}, expected it off, since the learner scores "
            "tokens under the distribution of the temperature alone"
        )
    return settings.temperature


def optimizer(settings: ConfigDict) -> optax.GradientTransformation:
    """The optimizer of a stage of reinforcement, or of that on pairs."""
    return make_optimizer(
        settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        clip_norm=settings.clip_norm,
        b2=settings.b2,
    )


def update(
    config: ConfigDict, settings: ConfigDict, graphdef: nnx.GraphDef, mesh: Mesh | None
) -> Update:
    """The learner's update in a stage of reinforcement."""
    heat, loss = temperature(settings), objectives.stage_loss(config, settings)
    return make_update(graphdef, loss, optimizer(settings), temperature=heat, mesh=mesh)


def scorer(settings: ConfigDict, graphdef: nnx.GraphDef, mesh: Mesh | None) -> Scorer | None:
    """What scores a stage's batches by its reference policy; None where it needs none."""
    if not objectives.wants_reference(settings):
        return None
    return make_scorer(graphdef, temperature=temperature(settings), mesh=mesh)


def packing(settings: ConfigDict, mesh: Mesh | None, pad_id: int) -> Packing:
    """How a stage packs its micro-batches."""
    return Packing(
        settings.token_budget,
        settings.prompt_buckets,
        settings.completion_buckets,
        row_shards(mesh),
        settings.get("members_at_once", 0),
        pad_id,
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
