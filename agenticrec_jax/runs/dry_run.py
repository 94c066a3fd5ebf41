"""Memory of a run's programs on each chip: they are compiled, and nothing is run or loaded.

The programs (`dry_run_programs`) are compiled for this machine's devices, or for a TPU slice or
GPUs that need not be there. For those, compilation stops as soon as the compiler has assigned all
buffers, before it generates code. Bytes are the compiler's; work is an estimate.
"""

import dataclasses
import functools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax

from agenticrec_jax.dryrun import cost
from agenticrec_jax.dryrun.chips import least_seconds
from agenticrec_jax.dryrun.kernels import cudnn_flops, splash_flops
from agenticrec_jax.dryrun.topology import (
    chip_memory,
    compile_for,
    plan_for,
)
from agenticrec_jax.errors import InputError
from agenticrec_jax.models.qwen3 import Qwen3Config
from agenticrec_jax.parallel.mesh import batch_shards
from agenticrec_jax.runs.config import RunConfig
from agenticrec_jax.runs.dry_run_programs import Program, hosts_of, meshes, programs
from agenticrec_jax.runs.dry_run_table import GIB, show
from agenticrec_jax.runs.dry_run_time import print_time, rollout_runs
from agenticrec_jax.runs.fitting import Change, search
from agenticrec_jax.runs.policy import model_config
from agenticrec_jax.runs.reinforcement import REINFORCEMENT
from agenticrec_jax.runs.run import check_paths
from agenticrec_jax.runtime.console import print_line, print_sentence

KERNELS = {"splash_m": splash_flops, "dot_product_attention": cudnn_flops}
Compiler = Callable[[jax.Device, jax.stages.Lowered], tuple[cost.Memory, str]]


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
        topology: a TPU slice or GPUs; empty for this machine's devices.
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
    found no way to fit it. ``bound`` is the memory that a program can have, ``seconds`` the least
    time of one run (`chips.least_seconds`).

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
        return {"bytes": None, "seconds": None, "needs": str(error).splitlines()[0]}
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
        "seconds": least_seconds(work, program.device.device_kind),
        "compile_seconds": round(seconds, 1),
    }


def compile_stage(
    config: RunConfig,
    stage: str,
    directory: str,
    topology: str = "",
    tokens: int = 0,
    price: float = 0,
) -> list[dict]:
    """Compiles the programs of a stage of reinforcement and prints a table; returns its rows.

    The least time of the stage is printed where the chip's peak rates are known. Where a program
    does not fit, settings with which all do are searched (`fitting.search`) and printed.

    Args:
        config: of the run.
        stage: ``rta`` or ``ppr``.
        directory: policy directory, of which ``config.json`` is read.
        topology: a TPU slice such as ``v5e:4x4`` or GPUs such as ``h100:8``; empty for this
            machine's devices.
        tokens: mean number of tokens of a rollout behind its prompt; 0 for the most.
        price: of a chip for an hour, in dollars; 0 if it is not known.

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
    mesh, host = meshes(config, topology)
    shards = 1 if host is None else batch_shards(host)
    tokens = tokens or config.engine.max_tokens
    print_time(
        compiled_rows,
        getattr(config, stage),
        rollout_runs(config, stage, hosts_of(mesh), shards, tokens),
        tokens=tokens,
        chips=1 if mesh is None else mesh.size,
        price=price,
    )
    fitting = {row["name"].removeprefix(f"{label}: "): row["fits"] for row in compiled_rows}
    large = [name for name, fits in fitting.items() if not fits]
    others = [name for name, fits in fitting.items() if fits]
    if large:

        def fits(changed: RunConfig) -> bool:
            # A change makes the others no larger, which is checked once these fit.
            groups = [names for names in (large, others) if names]
            return all(row["fits"] for names in groups for row in measure(changed, names))

        _say(large, search(config, stage, shards, fits))
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
    """Returns ``work()``, computed in a process of its own that is killed afterwards.

    Raises:
        InputError: the process ended before, as a compiler does by an error of its own, or for lack
            of the machine's memory.
    """
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    try:
        return pool.submit(work).result()
    except BrokenProcessPool as error:
        raise InputError(
            "flag --dry_run: the compiler ended by an error of its own (printed above) or for lack "
            "of memory; other settings may compile, such as another config.rta.members_at_once"
        ) from error
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
