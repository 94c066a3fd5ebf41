"""Records of a training step: rollouts, groups before padding, and the padded micro-batch.

Axes: P prompts, G members of a prompt's group, T completion tokens (Tp prompt tokens).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.losses import Metrics


@dataclass(frozen=True)
class Rollouts:
    """Rollouts of one step on this process.

    Attributes:
      trajectories: [groups][G], every group that was rolled out.
      batch: indices of the groups that belong to the step's batch. Dynamic sampling rolls out more
        groups than that; otherwise these are all.
      prompts: P, groups in the batch over all processes.
      telemetry: the engine's counters (`generation.telemetry.COUNTERS`), summed over its calls.
      metrics: (sum, count) of dynamic sampling, in place of metrics of the batch of the same name.
    """

    trajectories: Sequence[Sequence[Trajectory]]
    batch: Sequence[int]
    prompts: int
    telemetry: Mapping[str, float]
    metrics: Metrics = field(default_factory=dict)


class Completion(Protocol):
    """A completion as groups take it: parallel arrays over its T tokens."""

    ids: Int[np.ndarray, "T"]
    logprobs: Float[np.ndarray, "T"]
    origin: Int[np.ndarray, "T"]


@dataclass(frozen=True)
class Demonstration:
    """A completion to imitate: a `Completion` without log-probs.

    Attributes:
      ids: tokens.
      origin: ``SAMPLED`` for the tokens to imitate, ``OBSERVATION`` for those to read.
    """

    ids: Int[np.ndarray, "T"]
    origin: Int[np.ndarray, "T"]

    @property
    def logprobs(self) -> Float[np.ndarray, "T"]:
        """Zeros, since no policy sampled the tokens."""
        return np.zeros(len(self.ids), np.float32)


@dataclass(frozen=True)
class Group:
    """One prompt with its G completions, before padding.

    Attributes:
      prompt: token ids.
      completions: the members.
      advantages: of each member, or of each token of the longest completion; float32.
      weights: share of each member in the whole batch's loss, float32.
    """

    prompt: Sequence[int]
    completions: Sequence[Completion]
    advantages: Float[np.ndarray, "G"] | Float[np.ndarray, "G T"]
    weights: Float[np.ndarray, "G"]

    @property
    def longest(self) -> int:
        """Tokens in the longest completion."""
        return max(len(completion.ids) for completion in self.completions)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RolloutBatch:
    """A micro-batch of the learner: whole groups, padded on the right.

    Attributes:
      prompts: token ids.
      prompt_valid: True for the tokens of the prompt (at least one in every row).
      completions: token ids of everything after the prompt, observations included.
      valid: True for the tokens of the completion.
      sampled: True for the tokens that the policy sampled. Only these are scored and get a
        gradient.
      behavior_logprobs: log-probs of sampled tokens when they were sampled; 0 elsewhere.
      advantages: of each member, or of each token (`packing.Packing.token_advantages`).
      weights: share of each member in the whole batch; 0 for padding groups.
      reference_logprobs: log-probs of sampled tokens under the reference policy, for losses that
        use one.
      entropy: of the policy at each sampled token. The learner fills it in before it calls the
        loss.
      decisions: True for decision tokens (`training.decisions`), where the stage has a target of
        their entropy.
      decision_coef: weight of the bonus on their entropy, the same for all prompts.
    """

    prompts: Int[Array, "P Tp"]
    prompt_valid: Bool[Array, "P Tp"]
    completions: Int[Array, "P G T"]
    valid: Bool[Array, "P G T"]
    sampled: Bool[Array, "P G T"]
    behavior_logprobs: Float[Array, "P G T"]
    advantages: Float[Array, "P G"] | Float[Array, "P G T"]
    weights: Float[Array, "P G"]
    reference_logprobs: Float[Array, "P G T"] | None = None
    entropy: Float[Array, "P G T"] | None = None
    decisions: Bool[Array, "P G T"] | None = None
    decision_coef: Float[Array, "P"] | None = None
