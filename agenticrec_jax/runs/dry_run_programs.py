"""Programs of a run, made from shapes alone: nothing is compiled, loaded or allocated.

They are the run's own: the engine's ``prefill``, ``join``, ``decode`` and ``splice`` at the largest
of their declared shapes, and the learner's.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
from flax import nnx
from jax.sharding import Mesh

from agenticrec_jax.dryrun.topology import host_devices, slice_devices
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.models.lora import add_lora, split_learned
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config
from agenticrec_jax.parallel.mesh import abstract, batch_shardings, make_mesh
from agenticrec_jax.parallel.multihost import local_mesh
from agenticrec_jax.runs.config import RunConfig
from agenticrec_jax.runs.plugins import grpo_stage_loss
from agenticrec_jax.runs.reinforcement import grpo_stage
from agenticrec_jax.runs.run import device_mesh
from agenticrec_jax.runs.stage_config import GrpoConfig
from agenticrec_jax.training.learner import abstract_state
from agenticrec_jax.training.packing import Packing, abstract_batch, micro_batches
from agenticrec_jax.training.types import RolloutBatch


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
        topology: a TPU slice such as ``v5e:4x4`` or GPUs such as ``h100:8``; empty for this
            machine's devices.
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
    shared = shared_bytes(state.params, engine.abstract_params(params)) if host is mesh else 0
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
    hosts = hosts_of(mesh)
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


def hosts_of(mesh: Mesh | None) -> int:
    """Returns the number of hosts that have devices of a mesh."""
    return 1 if mesh is None else len({device.process_index for device in mesh.devices.flat})


def chip_bytes(tree) -> int:
    """Returns the bytes of a tree of shapes with their shardings on one chip."""

    def size(x: jax.ShapeDtypeStruct) -> int:
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        return jax.ShapeDtypeStruct(shape, x.dtype).size * x.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def shared_bytes(learner, engine) -> int:
    """Returns the bytes on a chip of the parameters that the engine shares with the learner.

    Args:
      learner: shapes of the learner's parameters, with their shardings.
      engine: those of the engine's, which has a copy of each that differs in dtype or sharding.
    """

    def same(a: jax.ShapeDtypeStruct, b: jax.ShapeDtypeStruct) -> bool:
        placed = a.sharding is None or a.sharding.is_equivalent_to(b.sharding, len(a.shape))
        return placed and a.dtype == b.dtype

    # By name: an int8 copy has arrays that the learner has not.
    engines = dict(jax.tree_util.tree_leaves_with_path(engine))
    named = jax.tree_util.tree_leaves_with_path(learner)
    return chip_bytes([a for name, a in named if same(a, engines[name])])
