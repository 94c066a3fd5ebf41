"""Memory of a run's programs on each chip: they are compiled, and nothing is run or loaded.

The programs are the run's own: the engine's ``prefill``, ``join``, ``decode`` and ``splice`` at the
largest of their declared shapes, and the learner's two. They are made from shapes alone, for this
machine's devices or for a TPU slice that need not be there. For a slice, compilation stops as soon
as the compiler has assigned all buffers, before it generates code. Bytes are the compiler's; work
is an estimate.
"""

import dataclasses
import functools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from agenticrec_jax.dryrun import cost
from agenticrec_jax.dryrun.kernels import splash_flops
from agenticrec_jax.dryrun.topology import (
    chip_memory,
    compile_for,
    host_devices,
    plan_for,
    slice_devices,
)
from agenticrec_jax.errors import InputError
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.models.lora import add_lora, split_learned
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config
from agenticrec_jax.parallel.mesh import abstract, batch_shardings, batch_shards, make_mesh
from agenticrec_jax.parallel.multihost import local_mesh
from agenticrec_jax.runs.config import RunConfig
from agenticrec_jax.runs.dry_run_table import GIB, show
from agenticrec_jax.runs.fitting import Change, search
from agenticrec_jax.runs.plugins import grpo_stage_loss
from agenticrec_jax.runs.policy import model_config
from agenticrec_jax.runs.reinforcement import REINFORCEMENT, grpo_stage
from agenticrec_jax.runs.run import check_paths, device_mesh
from agenticrec_jax.runs.stage_config import GrpoConfig
from agenticrec_jax.runtime.console import print_line, print_sentence
from agenticrec_jax.training.learner import abstract_state
from agenticrec_jax.training.packing import Packing, abstract_batch, micro_batches
from agenticrec_jax.training.types import RolloutBatch

KERNELS = {"splash_m": splash_flops}
Compiler = Callable[[jax.Device, jax.stages.Lowered], tuple[cost.Memory, str]]


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of a run before it is compiled.

    Attributes:
        name: of the program.
        runs: executions in a step of training; 0 where the rollouts decide.
        beside: bytes on a chip of arrays that stay there without being its arguments.
        lowered: the program, for its mesh and shapes.
        device: a chip of their kind.
        slices: that it runs on.
        devices: of all these slices; None: those of the program.
    """

    name: str
    runs: int
    beside: int
    lowered: jax.stages.Lowered
    device: jax.Device
    slices: int = 1
    devices: int | None = None


def meshes(config: RunConfig, topology: str) -> tuple[Mesh | None, Mesh | None]:
    """Returns the learner's mesh over all devices, and the engine's over those of one host.

    Raises:
        InputError: there is no such slice, or the config's mesh does not fit it.
    """
    if not topology:
        mesh = device_mesh(config.mesh)
        return mesh, local_mesh(mesh)
    devices = slice_devices(topology, config.mesh.slices)
    mesh = make_mesh(**dataclasses.asdict(config.mesh), devices=devices)
    if not mesh.is_multi_process:
        return mesh, mesh
    return mesh, make_mesh(**local_mesh(mesh).shape, devices=host_devices(topology))


def programs(
    config: RunConfig, stage: str, model: Qwen3Config, topology: str = ""
) -> Iterator[Program]:
    """Yields the programs of a stage of reinforcement, at their largest shapes.

    Args:
        config: of the run.
        stage: ``rta`` or ``ppr``.
        model: the policy's shape, computed as ``config.policy`` says.
        topology: a TPU slice such as ``v5e:4x4``; empty for this machine's devices.
    """
    settings = getattr(config, stage)
    mesh, host = meshes(config, topology)
    device = jax.devices()[0] if host is None else host.devices.flat[0]
    graphdef, params = nnx.split(nnx.eval_shape(lambda: model_of(config, model)))
    engine = Engine(graphdef, config.engine, 1, (2,), 0, mesh=host)
    learner = grpo_stage(
        stage,
        settings,
        loss_fn=grpo_stage_loss(settings, config.engine.max_tokens, f"config.{stage}"),
        graphdef=graphdef,
        mesh=mesh,
    )
    state = abstract_state(params, learner.optimizer, mesh)
    slots = chip_bytes(engine.abstract_state(params))
    learned, frozen = map(chip_bytes, split_learned(state.params))
    moments = chip_bytes(state.opt_state)
    learning = functools.partial(
        Program, device=device, slices=config.mesh.slices, devices=mesh and mesh.size
    )
    shared = _shared(state.params, engine.abstract_params(params)) if host is mesh else 0
    reference = learned if learner.score else 0  # its copy of the trained weights
    beside = learned + frozen + moments + reference - shared
    for name, lowered in engine.lower(params, settings.members).items():
        yield Program(name, 0, beside, lowered, device)
    count, batch = _micro_batches(config, settings, learner.loop.packing, mesh)
    if learner.score:
        placed = batch if mesh is None else abstract(batch, batch_shardings(batch, mesh))
        lowered = learner.score.lower(
            state.params, dataclasses.replace(placed, reference_logprobs=None)
        )
        yield learning("reference", count, moments + slots + learned, lowered)
    lowered = learner.update.lower(state, batch)
    yield learning("gradients", count, moments + slots + reference, lowered["accumulate"])
    yield learning("update", 1, frozen + slots + reference, lowered["apply"])


def model_of(config: RunConfig, model: Qwen3Config) -> Qwen3:
    """Returns a run's policy of a shape, with its adapters; to be traced, not computed."""
    policy, adapters = Qwen3(model, rngs=nnx.Rngs(0)), config.policy.lora.adapters()
    return policy if adapters is None else add_lora(policy, adapters, rngs=nnx.Rngs(0))


def _micro_batches(
    config: RunConfig, settings: GrpoConfig, packing: Packing, mesh: Mesh | None
) -> tuple[int, RolloutBatch]:
    """Returns the number of a step's micro-batches if all rollouts are as long as can be, and the
    shapes of the first.

    Several hosts each pack the groups of their own prompts.
    """
    hosts = 1 if mesh is None else len({device.process_index for device in mesh.devices.flat})
    members = packing.members_at_once or settings.members
    groups_per_host = -(-settings.prompts // hosts) * (settings.members // members)
    buckets = settings.prompt_buckets
    prompt = config.engine.prompt_buckets[-1]
    prompt = prompt if isinstance(buckets, int) else min(prompt, buckets[-1])
    longest = config.engine.max_tokens, prompt, members
    shapes = list(micro_batches([[longest] * groups_per_host], packing))
    groups, prompt, completion = shapes[0]
    return len(shapes), abstract_batch(
        groups * hosts,
        members,
        prompt,
        completion,
        settings.uses_reference,
        packing.token_advantages,
        settings.entropy_target > 0,
    )


def chip_bytes(tree) -> int:
    """Returns the bytes of a tree of shapes with their shardings on one chip."""

    def size(x: jax.ShapeDtypeStruct) -> int:
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        return jax.ShapeDtypeStruct(shape, x.dtype).size * x.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def _shared(learner, engine) -> int:
    """Returns the bytes of parameters that the engine uses in place, without a copy."""

    def same(a: jax.ShapeDtypeStruct, b: jax.ShapeDtypeStruct) -> bool:
        placed = a.sharding is None or a.sharding.is_equivalent_to(b.sharding, len(a.shape))
        return placed and a.dtype == b.dtype

    # By name: an int8 copy has arrays that the learner has not.
    engines = dict(jax.tree_util.tree_leaves_with_path(engine))
    named = jax.tree_util.tree_leaves_with_path(learner)
    return chip_bytes([a for name, a in named if same(a, engines[name])])


def rows(
    config: RunConfig,
    stage: str,
    model: Qwen3Config,
    topology: str,
    label: str,
    compiler: Compiler = compile_for,
    at_once: int | None = min(4, os.cpu_count()),
    names: Collection[str] = (),
) -> list[dict]:
    """Compiles the programs of a stage; returns a `row` for each.

    Args:
        config: of the run.
        stage: ``rta`` or ``ppr``.
        model: the policy's shape.
        topology: a TPU slice; empty for this machine's devices.
        label: first words of the rows' names.
        compiler: compiles one program for a device.
        at_once: programs compiled together; None for all.
        names: of the programs; empty for all.
    """
    if topology:  # a cache on disk would hold programs that this machine cannot read back
        jax.config.update("jax_enable_compilation_cache", False)
    lowered = [p for p in programs(config, stage, model, topology) if p.name in names or not names]
    settings = described(config, stage)
    with ThreadPoolExecutor(at_once or len(lowered)) as pool:
        figures = list(pool.map(functools.partial(compiled, compiler=compiler), lowered))
    return [
        row(program, of_program, label, settings)
        for program, of_program in zip(lowered, figures, strict=True)
    ]


def row(program: Program, figures: dict, label: str, settings: dict) -> dict:
    """Returns a benchmark's row for a program.

    ``ours`` is the memory in use on a chip while the program runs, in GiB, or null if the compiler
    found no way to fit it. ``bound`` is the memory that a program can have.

    Args:
        program: that was compiled.
        figures: of `compiled`.
        label: first words of the row's name.
        settings: that decide what fits.
    """
    available = chip_memory(program.device)
    total = figures["bytes"] and figures["bytes"]["peak"] + program.beside
    return {
        "name": f"{label}: {program.name}",
        "unit": "GiB a chip",
        "ours": total and round(total / GIB, 3),
        "peer": None,
        "peer_name": None,
        "bound": available and round(available / GIB, 2),
        "fits": total is not None and (available is None or total <= available),
        "runs": program.runs,
        "settings": settings,
        "beside": program.beside,
        **figures,
    }


_compiled: dict[tuple, dict] = {}


def compiled(program: Program, compiler: Compiler) -> dict:
    """Returns the compiler's figures of a program; equal programs are compiled once.

    ``bytes`` is null and ``needs`` is the compiler's message if it found no way to fit the program.
    """
    key = program.device.device_kind, program.lowered.as_text()
    if key not in _compiled:
        _compiled[key] = _compile(program, compiler)
    return _compiled[key]


def _compile(program: Program, compiler: Compiler) -> dict:
    began = time.perf_counter()
    try:
        memory, text = compiler(program.device, program.lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"bytes": None, "needs": str(error).splitlines()[0]}
    seconds = time.perf_counter() - began
    work = cost.estimate(text, KERNELS, slices=program.slices, devices=program.devices)
    return {
        "bytes": dataclasses.asdict(memory) | {"peak": memory.peak},
        "collectives": {kind: dataclasses.asdict(t) for kind, t in work.collectives.items()},
        "between_slices": {kind: dataclasses.asdict(t) for kind, t in work.between_slices.items()},
        "estimate": {
            "matmul_flops": work.flops,
            "bytes_accessed": work.bytes,
            "bytes_copied": work.copied,
        },
        "uncounted": dict(work.uncounted),
        "compile_seconds": round(seconds, 1),
    }


def compile_stage(config: RunConfig, stage: str, directory: str, topology: str = "") -> list[dict]:
    """Compiles the programs of a stage of reinforcement and prints a table; returns its rows.

    Where a program does not fit, settings with which all do are searched (`fitting.search`) and
    printed.

    Args:
        config: of the run.
        stage: ``rta`` or ``ppr``.
        directory: policy directory, of which ``config.json`` is read.
        topology: a TPU slice such as ``v5e:4x4``; empty for this machine's devices.

    Raises:
        InputError: the stage has no such programs, or there is no such slice.
    """
    if stage not in REINFORCEMENT:
        raise InputError(f"flag --dry_run: found --stage={stage}, expected rta or ppr")
    check_paths(config)
    model = model_config(config.policy, directory)
    slices = f"{config.mesh.slices} x " if config.mesh.slices > 1 else ""
    label = f"{slices}{topology}" if topology else "this machine"

    def measure(config: RunConfig, names: Collection[str] = ()) -> list[dict]:
        shape = dataclasses.replace(model, **config.policy.computation())
        compiles = planned if topology else rows
        return compiles(config, stage, shape, topology, label, names=names)

    compiled_rows = measure(config)
    show(compiled_rows)
    fitting = {row["name"].removeprefix(f"{label}: "): row["fits"] for row in compiled_rows}
    large = [name for name, fits in fitting.items() if not fits]
    others = [name for name, fits in fitting.items() if fits]
    if large:

        def fits(changed: RunConfig) -> bool:
            # A change makes the others no larger, which is checked once these fit.
            groups = [names for names in (large, others) if names]
            return all(row["fits"] for names in groups for row in measure(changed, names))

        _, host = meshes(config, topology)
        _say(large, search(config, stage, 1 if host is None else batch_shards(host), fits))
    return compiled_rows


def _say(large: Collection[str], options: list[tuple[Change, ...]]) -> None:
    print_sentence(f"does not fit: {', '.join(large)}")
    for changes in options:
        flags = " ".join(f"--config.{name}={value}" for name, value in changes)
        print_line(f"all programs fit with {flags}")  # to be copied to a shell
    if not options:
        print_sentence(
            "no one or two settings that were tried make it fit; take more or larger chips"
        )


def planned(
    config: RunConfig,
    stage: str,
    model: Qwen3Config,
    topology: str,
    label: str,
    names: Collection[str] = (),
) -> list[dict]:
    """Returns the `rows` of a slice, without the bytes of the machine's code.

    All programs are compiled together in a process of their own. It is ended once the figures are
    known: the compiler would go on to generate code, which takes most of the time.
    """
    with tempfile.TemporaryDirectory() as dumps:
        compiler = functools.partial(plan_for, directory=dumps)
        work = functools.partial(rows, config, stage, model, topology, label, compiler, None, names)
        return run_in_process(work)


def run_in_process(work: Callable[[], Any]) -> Any:
    """Returns ``work()``, computed in a process of its own that is killed afterwards."""
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    try:
        return pool.submit(work).result()
    finally:
        for process in multiprocessing.active_children():
            if process not in others:
                process.kill()
        pool.shutdown()


def described(config: RunConfig, stage: str) -> dict:
    """Returns the settings that decide what fits."""
    settings = getattr(config, stage)
    return {
        "mesh": dataclasses.asdict(config.mesh),
        **config.policy.computation(),
        "lora_rank": config.policy.lora.rank,
        "slots": config.engine.slots,
        **({"weight_dtype": config.engine.weight_dtype} if config.engine.weight_dtype else {}),
        **({"pages": config.engine.pages} if config.engine.page_tokens else {}),
        "max_tokens": config.engine.max_tokens,
        "prompts": settings.prompts,
        "members": settings.members,
        "members_at_once": settings.members_at_once,
        "token_budget": settings.token_budget,
    }
