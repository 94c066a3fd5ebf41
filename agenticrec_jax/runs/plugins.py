"""Tools, rewards, losses and advantages of your own, named in the configuration by import path.

- ``config.tools.extra=my_tools:CountBrands,my_tools:Other`` adds tools to the agent's. Parameters
  of a class are filled by name from what the agent's own tools get (`tools.registry.ARGUMENTS`).
- ``config.tools.disabled=get_similar_items`` takes tools away, the agent's or your own.
- ``config.reward=my_rewards:diverse`` replaces the reward.
- ``config.rta.loss_fn=my_losses:better_half`` replaces a stage's loss.
- ``config.rta.advantage_fn=my_advantages:upper_half`` replaces a stage's advantages.

`load_plugins` imports all of them and tries them on shapes (advantages on a few rewards), so that a
run refuses a bad one before it loads anything.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from agenticrec_jax.agent.rewards import REWARDS, RewardFn
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.losses import (
    AdvantageFn,
    LossFn,
    dpo_preference_loss,
    for_batch,
    grpo_loss,
    length_normalizer,
    logistic_preference_loss,
)
from agenticrec_jax.runs.config import RunConfig
from agenticrec_jax.runs.stage_config import (
    BETAS,
    LOGISTIC,
    GrpoConfig,
    GrpoLossConfig,
    PairsConfig,
)
from agenticrec_jax.tools.base import Tool, Toolbox
from agenticrec_jax.tools.checks import check_known, tool_fault
from agenticrec_jax.tools.registry import ARGUMENTS, TOOLS, filled_parameters, make_tool
from agenticrec_jax.training.groups import GroupWeighting, advantages_of
from agenticrec_jax.training.packing import abstract_batch
from agenticrec_jax.training.types import RolloutBatch

_TOOLS_KEY = "config.tools.extra"
_DISABLED_KEY = "config.tools.disabled"


@dataclasses.dataclass(frozen=True)
class Plugins:
    """Functions and classes that a configuration names, imported and checked.

    Attributes:
      reward: ``(trajectory, task) -> Reward``.
      losses: ``(logprobs, batch) -> (loss, metrics)`` of the stages ``rta``, ``ppr`` and ``pairs``.
      advantages: ``(rewards, mask) -> advantages`` of the stages ``rta`` and ``ppr``; None for
        `losses.group_advantages`.
      tools: import paths of extra tools, each with its class.
      disabled: names of tools that are not offered.
    """

    reward: RewardFn
    losses: Mapping[str, LossFn]
    advantages: Mapping[str, AdvantageFn | None]
    tools: tuple[tuple[str, Callable[..., Tool]], ...]
    disabled: tuple[str, ...]

    def configured(self, toolbox: Toolbox, arguments: Mapping[str, Any]) -> Toolbox:
        """Returns the toolbox with the extra tools and without the disabled ones.

        Args:
          toolbox: of the agent.
          arguments: values of `tools.registry.ARGUMENTS` by name.

        Raises:
          InputError: a class makes no tool, or one with the name of another tool; or a disabled
            tool does not exist.
        """
        for path, tool_class in self.tools:
            tool = make_tool(tool_class, arguments)
            if fault := tool_fault(tool):
                raise InputError(f"{_TOOLS_KEY}: found {path} {fault}")
            if tool.name in toolbox.names:
                raise InputError(
                    f"{_TOOLS_KEY}: found {path} with name {tool.name!r}, expected none of "
                    f"{', '.join(toolbox.names)}"
                )
            toolbox = toolbox.with_tools([tool])
        return toolbox.without(self.disabled, _DISABLED_KEY)


def load_plugins(config: RunConfig) -> Plugins:
    """Imports and checks everything that the configuration names by import path.

    Raises:
      InputError: names the key of a path that leads nowhere, or to something that cannot be used.
    """
    paths = [path.strip() for path in config.tools.extra.split(",") if config.tools.extra]
    tools = tuple((path, _tool_class(path)) for path in paths)
    _check_disabled(config, [tool_class for _, tool_class in tools])
    return Plugins(
        reward=_reward(config.reward),
        losses={
            "rta": grpo_stage_loss(config.rta, config.engine.max_tokens, "config.rta"),
            "ppr": grpo_stage_loss(config.ppr, config.engine.max_tokens, "config.ppr"),
            "pairs": pairs_loss(config.pairs),
        },
        advantages={
            "rta": stage_advantages(config.rta, "config.rta"),
            "ppr": stage_advantages(config.ppr, "config.ppr"),
        },
        tools=tools,
        disabled=config.tools.disabled,
    )


def import_path(path: str, key: str, kind: str) -> Callable:
    """Returns the function or class at ``package.module:name``.

    Args:
      path: the import path.
      key: the setting that names it, for errors.
      kind: ``function`` or ``class``, for errors.

    Raises:
      InputError: names ``key``; the module cannot be imported or has no such name.
    """
    module, _, name = path.partition(":")
    if not all(word.isidentifier() for word in [*module.split("."), name]):
        raise InputError(f"{key}: found {path!r}, expected package.module:{kind}")
    try:
        value = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # a module of the user's may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{key}: found {path!r}, expected a module that can be imported ({reason})"
        ) from error
    if not callable(value):
        raise InputError(f"{key}: found no {kind} {name} in {module}, expected {path}")
    return value


def _reward(name: str) -> RewardFn:
    if name in REWARDS:
        return REWARDS[name]
    known = f"one of {', '.join(REWARDS)}, or package.module:function"
    expect(":" in name, "config.reward", name, known)
    return _function(name, "config.reward", "(trajectory, task)")


def _function(path: str, key: str, arguments: str, hint: str = "") -> Callable:
    """Returns the function of two arguments at ``path``; the InputError names ``key``."""
    function = import_path(path, key, "function")
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError) as error:  # it takes other arguments, or has no signature
        raise InputError(
            f"{key}: found {path} ({error}), expected a function of {arguments}{hint}"
        ) from error
    return function


def grpo_stage_loss(config: GrpoConfig, max_tokens: int, key: str) -> LossFn:
    """Returns the loss of a stage: `losses.grpo_loss` with its options, or your own.

    Args:
      config: of the stage.
      max_tokens: of a completion, the constant length that normalizes the paper's loss.
      key: name of the stage in errors, such as ``config.rta``.

    Raises:
      InputError: two options exclude each other, or a loss of your own cannot be called with
        ``(logprobs, batch)`` or does not return ``(loss, metrics)``.
    """
    batch = abstract_batch(
        2,
        config.members,
        3,
        5,
        reference=config.uses_reference,
        token_advantages=config.groups.of_tokens,
        decisions=config.entropy_target > 0,
    )
    if config.loss_fn:
        return _custom_loss(config, batch, key)
    normalizer = length_normalizer(config.groups.aggregation, max_tokens)
    loss_fn = for_batch(grpo_loss, normalizer=normalizer, **dataclasses.asdict(config.loss))
    try:
        _try_on_shapes(loss_fn, batch)
    except (ValueError, TypeError) as error:
        raise InputError(f"{key}.loss: {error}") from error
    return loss_fn


def _custom_loss(config: GrpoConfig, batch: RolloutBatch, key: str) -> LossFn:
    path = config.loss_fn
    for field in dataclasses.fields(config.loss):
        value = getattr(config.loss, field.name)
        default = getattr(GrpoLossConfig(), field.name)
        if value != default:
            raise InputError(
                f"{key}.loss.{field.name}: found {value!r} beside {key}.loss_fn={path}, expected "
                f"{default!r}, since the options are those of grpo_loss"
            )
    loss_fn = _function(
        path, f"{key}.loss_fn", "(logprobs, batch)", hint=", such as losses.for_batch makes"
    )
    returned = _try_on_shapes(loss_fn, batch)
    if not _is_loss(returned):
        raise InputError(
            f"{key}.loss_fn: found {path} to return {returned}, expected (loss, metrics): a "
            "number, and (sum, count) pairs of numbers by name"
        )
    return loss_fn


def _try_on_shapes(loss_fn: LossFn, batch: RolloutBatch) -> Any:
    """Calls a loss as the learner does, on shapes alone."""
    logprobs = batch.behavior_logprobs
    return jax.eval_shape(loss_fn, logprobs, dataclasses.replace(batch, entropy=logprobs))


def _is_loss(returned: Any) -> bool:
    def is_number(x: Any) -> bool:
        return getattr(x, "shape", None) == ()

    def is_pair(x: Any) -> bool:
        return isinstance(x, tuple) and len(x) == 2 and all(map(is_number, x))

    if not (isinstance(returned, tuple) and len(returned) == 2):
        return False
    loss, metrics = returned
    return is_number(loss) and isinstance(metrics, dict) and all(map(is_pair, metrics.values()))


def stage_advantages(config: GrpoConfig, key: str) -> AdvantageFn | None:
    """Returns the advantages of your own of a stage; None for `losses.group_advantages`.

    Args:
      config: of the stage.
      key: name of the stage in errors, such as ``config.rta``.

    Raises:
      InputError: an option of `losses.group_advantages` is set too, or the function cannot be
        called with ``(rewards, mask)`` or does not return finite numbers in the rewards' shape.
    """
    path = config.advantage_fn
    if not path:
        return None
    for name in ("baseline", "scale", "tree_values"):
        value = getattr(config.groups, name)
        default = getattr(GroupWeighting(), name)
        if value != default:
            raise InputError(
                f"{key}.groups.{name}: found {value!r} beside {key}.advantage_fn={path}, expected "
                f"{default!r}, since the option belongs to group_advantages"
            )
    function = _function(path, f"{key}.advantage_fn", "(rewards, mask)")
    # A group of different rewards, and two of equal ones, whose deviation is 0.
    spread = np.linspace(-1, 1.1, config.members)
    rewards = np.stack([spread, np.full_like(spread, 0.5), np.full_like(spread, -1)])
    try:
        advantages_of(rewards.astype(np.float32), config.groups, function)
    except InputError as error:
        raise InputError(f"{key}.advantage_fn: found {path} ({error})") from error
    except Exception as error:  # a function of the user's may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{key}.advantage_fn: found {path} to raise {reason}, expected advantages of rewards "
            f"{list(rewards.shape)}"
        ) from error
    return function


def pairs_loss(config: PairsConfig) -> LossFn:
    """Returns the loss of the stage on pairs: PPR's logistic form, DPO's or S-DPO's."""
    if config.objective == LOGISTIC:
        return for_batch(logistic_preference_loss)
    beta = BETAS[config.objective] if config.beta is None else config.beta
    return for_batch(dpo_preference_loss, beta=beta)


def _check_disabled(config: RunConfig, extra: Sequence[Callable[..., Tool]]) -> None:
    """Refuses names of no tool before anything is loaded, where all names are known then.

    A tool whose class has no name gets one when it is made, and `Plugins.configured` checks again.
    """
    names = [getattr(tool_class, "name", None) for tool_class in extra]
    if None not in names:
        known = [*(tool.name for tool in TOOLS[config.agent]), *names]
        check_known(config.tools.disabled, known, _DISABLED_KEY)


def _tool_class(path: str) -> Callable[..., Tool]:
    tool_class = import_path(path, _TOOLS_KEY, "class")
    try:
        inspect.signature(tool_class).bind(**dict.fromkeys(filled_parameters(tool_class)))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{_TOOLS_KEY}: found {path} that cannot be made ({error}), expected a class with "
            f"parameters among {', '.join(ARGUMENTS)}"
        ) from error
    return tool_class
