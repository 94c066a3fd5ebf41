"""The loss of a stage of reinforcement by its config, and what refuses one that cannot be.

``config.rta`` and ``config.ppr`` each have ``loss`` (options of `grpo_loss`, by name), ``groups``
(fields of `GroupWeighting`), ``oversample``, ``reference``, and ``loss_fn``, the import path of a
loss of one's own. ``config.pairs`` has an ``objective``, one of ``PAIR_OBJECTIVES``, and its
``beta``. What is refused is so before anything is loaded.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from agenticrec_jax.agent.rewards import REWARDS, RewardFn
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.losses import (
    LossFn,
    dpo_preference_loss,
    for_batch,
    group_advantages,
    grpo_loss,
    length_normalizer,
    logistic_preference_loss,
    member_weights,
)
from agenticrec_jax.runs.imports import imported
from agenticrec_jax.training.groups import GroupWeighting
from agenticrec_jax.training.packing import abstract_batch

STAGES = ("rta", "ppr")
OPTIONS = {
    name: parameter.default
    for name, parameter in inspect.signature(grpo_loss).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name != "normalizer"
}
LOGISTIC, DPO, SOFTMAX_DPO = PAIR_OBJECTIVES = ("logistic", "dpo", "sdpo")
BETAS = {DPO: 0.1, SOFTMAX_DPO: 1.0}  # those of the papers


def check(config: ConfigDict) -> None:
    """Raises InputError where the loss or the groups of a stage cannot be as the config says."""
    reward(config)
    for name in STAGES:
        stage_loss(config, config[name])
        oversample(config, config[name])
    pair_loss(config)


def reward(config: ConfigDict) -> RewardFn:
    """Returns the function that scores a trajectory: a named one, or a custom one by its path.

    Raises:
      InputError: ``config.reward`` is no name in `REWARDS` and leads to no function of
        ``(trajectory, task)``.
    """
    if config.reward in REWARDS:
        return REWARDS[config.reward]
    known = f"one of {', '.join(REWARDS)}, or package.module:function"
    expect(":" in str(config.reward), "config.reward", config.reward, known)
    return _function(config.reward, "config.reward", "(trajectory, task)")


def stage_loss(config: ConfigDict, settings: ConfigDict) -> LossFn:
    """The loss of a stage: list-wise GRPO with the config's options, or the user's own.

    Raises:
      InputError: an option is unknown, has no such value or would be without effect; or the path
        leads to no function of ``(logprobs, batch)`` that returns a number and pairs.
    """
    key, weigh = f"config.{_name(config, settings)}", weighting(config, settings)
    options = _named(settings.loss, OPTIONS, f"{key}.loss")
    if settings.loss_fn:
        return _own_loss(settings, options, key)
    length = length_normalizer(weigh.aggregation, config.engine.max_tokens)
    loss_fn = for_batch(grpo_loss, normalizer=length, **options)
    try:
        jax.eval_shape(loss_fn, *_shapes(settings))
    except (ValueError, TypeError) as error:
        raise InputError(f"{key}.loss: {error}") from error
    return loss_fn


def weighting(config: ConfigDict, settings: ConfigDict) -> GroupWeighting:
    """How a stage weighs groups; InputError for a name or a value that there is not."""
    key = f"config.{_name(config, settings)}.groups"
    defaults = {field.name: field.default for field in dataclasses.fields(GroupWeighting)}
    found = GroupWeighting(**_named(settings.groups, defaults, key))
    try:
        group_advantages(np.zeros((1, 2)), None, found.baseline, found.scale)
        member_weights(np.ones((1, 2), int), found.aggregation)
    except ValueError as error:
        raise InputError(f"{key}: {error}") from error
    return found


def oversample(config: ConfigDict, settings: ConfigDict) -> int:
    """Most rounds of a step after the first; InputError if there is nothing to refill."""
    key, weigh = f"config.{_name(config, settings)}", weighting(config, settings)
    rounds = settings.oversample
    if rounds < 0:
        raise InputError(f"{key}.oversample: found {rounds}, expected 0 or above")
    if rounds and not (weigh.drop_negative or weigh.drop_equal):
        raise InputError(
            f"{key}.oversample: found {rounds} with no group dropped, expected 0, or "
            "drop_negative or drop_equal"
        )
    return rounds


def wants_reference(settings: ConfigDict) -> bool:
    """Whether the batches of a stage have log-probs of the policy that it started from."""
    return bool(settings.reference or settings.loss.kl_coef)


def pair_loss(config: ConfigDict) -> LossFn:
    """The loss of the stage on pairs; InputError for settings that there are not or do nothing."""
    settings = config.pairs
    objective, beta = settings.objective, settings.beta
    if objective not in PAIR_OBJECTIVES:
        raise InputError(
            f"config.pairs.objective: found {objective!r}, expected one of "
            f"{', '.join(PAIR_OBJECTIVES)}"
        )
    most = config.dataset.negatives if objective == SOFTMAX_DPO else 1
    if not 1 <= settings.negatives <= most:
        raise InputError(
            f"config.pairs.negatives: found {settings.negatives} with objective {objective}, "
            f"expected {f'1 to {most}' if most > 1 else 1}"
        )
    for name in ("epochs", "batch"):
        if settings[name] < 1:
            raise InputError(f"config.pairs.{name}: found {settings[name]}, expected 1 or above")
    if objective == LOGISTIC:
        if beta is not None:
            raise InputError(
                f"config.pairs.beta: found {beta} with objective {LOGISTIC}, expected None, since "
                "that loss has no reference policy"
            )
        return for_batch(logistic_preference_loss)
    beta = BETAS[objective] if beta is None else beta
    if beta <= 0:
        raise InputError(f"config.pairs.beta: found {beta}, expected above 0")
    return for_batch(dpo_preference_loss, beta=beta)


def _name(config: ConfigDict, settings: ConfigDict) -> str:
    return next(name for name in STAGES if config[name] is settings)


def _named(settings: ConfigDict, defaults: dict[str, Any], key: str) -> dict[str, Any]:
    """The settings as keyword arguments; each is one of those that have a default."""
    found = settings.to_dict()
    for name in sorted(found.keys() - defaults.keys()):
        raise InputError(
            f"{key}.{name}: found an option that there is not, expected one of "
            f"{', '.join(defaults)}"
        )
    return {name: found[name] for name in defaults if name in found}


def _shapes(settings: ConfigDict) -> tuple:
    """Log-probs and batch as the learner gives them to a loss, no numbers."""
    batch = abstract_batch(2, settings.members, 3, 5, reference=wants_reference(settings))
    tokens = batch.behavior_logprobs
    return tokens, dataclasses.replace(batch, entropy=tokens)


def _own_loss(settings: ConfigDict, options: dict[str, Any], key: str) -> LossFn:
    for name, value in options.items():
        if value != OPTIONS[name]:
            raise InputError(
                f"{key}.loss.{name}: found {value!r} beside {key}.loss_fn={settings.loss_fn}, "
                f"expected {OPTIONS[name]!r}, since the options are those of grpo_loss"
            )
    loss_fn = _function(settings.loss_fn, f"{key}.loss_fn", "(logprobs, batch)")
    returned = jax.eval_shape(loss_fn, *_shapes(settings))
    if not _is_loss(returned):
        raise InputError(
            f"{key}.loss_fn: found {settings.loss_fn} to return {returned}, expected "
            "(loss, metrics): a number, and pairs of numbers by name"
        )
    return loss_fn


def _is_loss(returned: Any) -> bool:
    def number(x: Any) -> bool:
        return getattr(x, "shape", None) == ()

    def pair(x: Any) -> bool:
        return isinstance(x, tuple) and len(x) == 2 and all(map(number, x))

    if not (isinstance(returned, tuple) and len(returned) == 2):
        return False
    loss, metrics = returned
    return number(loss) and isinstance(metrics, dict) and all(map(pair, metrics.values()))


def _function(path: str, key: str, arguments: str) -> Callable:
    """Returns the function of two arguments at ``path``; the InputError names ``key``."""
    found = imported(path, key, "function")
    try:
        inspect.signature(found).bind(None, None)
    except (TypeError, ValueError) as error:  # it takes other arguments, or has no signature
        raise InputError(
            f"{key}: found {path} ({error}), expected a function of {arguments}"
        ) from error
    return found
