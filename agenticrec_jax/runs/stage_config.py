"""Configurations of the stages of training.

A setting that would train nothing (a learning rate of 0, a group of one) is refused.
"""

from typing import Literal

from pydantic import Field

from agenticrec_jax.errors import expect
from agenticrec_jax.losses.advantages import BASELINES, SCALES
from agenticrec_jax.losses.aggregation import AGGREGATIONS
from agenticrec_jax.runs.validation import configuration
from agenticrec_jax.training.groups import GroupWeighting
from agenticrec_jax.training.mining import PairRule
from agenticrec_jax.training.self_augmentation import Rules

Buckets = int | tuple[int, ...]
PROMPT_BUCKETS = (64, 256, 320, 512)
COMPLETION_BUCKETS = (64, 128, 192, 288)
LOGISTIC = "logistic"
DPO = "dpo"
SOFTMAX_DPO = "sdpo"
MINING_BAND = (0.2, 0.8)
BETAS = {DPO: 0.1, SOFTMAX_DPO: 1.0}  # of the papers


@configuration
class WarmStartConfig:
    """Stage ``sft``: the curriculum of its demonstrations."""

    learning_rate: float = Field(2e-3, gt=0, description="Peak rate of AdamW.")
    warmup_steps: int = Field(20, ge=0, description="Updates in which the rate rises.")
    lessons: tuple[tuple[tuple[str | int, ...], int], ...] = Field(
        (
            (("short",), 80),
            (("copy", "copy", "copy", "short"), 80),
            (("merge", "merge", "merge", "copy"), 400),
            ((0, "merge"), 60),
            ((2, 0, "merge"), 45),
            ((4, 2, "merge"), 45),
            ((6, 6, "merge"), 600),
        ),
        description="Exercises in turn, and steps; a number is the title tokens of episodes.",
    )
    fused: float = Field(
        0.0, ge=0, le=1, description="Share of demonstrated plans that fuse orders by weights."
    )
    prompts: int = Field(8, ge=1, description="Prompts a step.")
    members: int = Field(4, ge=1, description="Demonstrations a prompt.")
    token_budget: int = Field(16384, ge=1, description="Padded tokens in a micro-batch.")
    save_every: int = Field(50, ge=1, description="Steps between two checkpoints.")

    def __post_init__(self):
        steps = [steps for _, steps in self.lessons]
        expect(min(steps, default=0) > 0, "lessons", self.lessons, "lessons of 1 step or more")


@configuration
class TrainingConfig:
    """Settings that every stage of training has.

    A learning rate of 0 or a step without prompts would train nothing, so both are refused.
    """

    prompt_buckets: Buckets = Field(
        PROMPT_BUCKETS, description="Padded lengths of prompts, or one number for its multiples."
    )
    completion_buckets: Buckets = Field(
        COMPLETION_BUCKETS, description="Padded lengths of completions, likewise."
    )
    token_budget: int = Field(16384, ge=1, description="Padded tokens in a micro-batch.")
    learning_rate: float = Field(1e-4, gt=0, description="Peak rate of AdamW.")
    warmup_steps: int = Field(2, ge=0, description="Updates in which the rate rises.")
    save_every: int = Field(5, ge=1, description="Steps between two checkpoints.")

    def __post_init__(self):
        for name in ("prompt_buckets", "completion_buckets"):
            value = getattr(self, name)
            lengths = (value,) if isinstance(value, int) else value
            ascending = bool(lengths) and list(lengths) == sorted(set(lengths)) and lengths[0] > 0
            expect(ascending, name, value, "a number above 0 or ascending numbers above 0")


@configuration
class SelfSftConfig(TrainingConfig):
    """Stage ``self_sft``: imitation of the best of the policy's own trajectories (RecThinker)."""

    examples: int = Field(0, ge=0, description="Policy examples that are sampled; 0 for all.")
    members: int = Field(8, ge=1, description="Trajectories an example.")
    temperature: float = Field(1.0, gt=0, description="Of sampling.")
    forced_calls: int = Field(
        0,
        ge=0,
        description="Members of a group whose first call is forced, each to another tool in turn; "
        "such calls are imitated too.",
    )
    forced_tools: tuple[str, ...] = Field(
        (), description="Names of the tools of forced calls; none: all tools."
    )
    chunk: int = Field(64, ge=1, description="Examples between two saves of rollouts.")
    rules: Rules = Rules()
    epochs: int = Field(2, ge=1, description="Passes over the trajectories.")
    batch: int = Field(16, ge=1, description="Trajectories an update.")
    save_every: int = Field(20, ge=1, description="Steps between two checkpoints.")

    def __post_init__(self):
        TrainingConfig.__post_init__(self)
        most = f"at most members {self.members}"
        expect(self.forced_calls <= self.members, "forced_calls", self.forced_calls, most)
        used = self.forced_calls > 0 or not self.forced_tools
        expect(used, "forced_tools", self.forced_tools, "none where forced_calls is 0")


@configuration
class GrpoLossConfig:
    """Options of `losses.grpo_loss`; the defaults are AgenticRec's loss."""

    ratio: Literal["token", "sequence"] = Field(
        "token", description="Importance ratio of each token, or of the sequence (GSPO)."
    )
    clip_low: float | None = Field(None, description="Clip of the ratio below 1; None for none.")
    clip_high: float | None = Field(None, description="Clip above 1; set together with clip_low.")
    dual_clip: float | None = Field(None, description="Bound of the ratio at negative advantages.")
    correction_cap: float | None = Field(
        None, description="Truncation of the weights that correct for the sampler."
    )
    kl_coef: float = Field(0.0, ge=0, description="Penalty of leaving the stage's first policy.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        "k3", description="Estimator of the KL divergence."
    )
    entropy_coef: float = Field(0.0, description="Bonus on the policy's entropy.")

    def __post_init__(self):
        unused = self.kl_estimator != "k3" and not self.kl_coef
        expect(not unused, "kl_estimator", self.kl_estimator, "k3 where kl_coef is 0")


@configuration
class GrpoConfig(TrainingConfig):
    """Stage ``rta``: list-wise GRPO on ranking tasks."""

    steps: int = Field(15, ge=1, description="Updates.")
    prompts: int = Field(16, ge=1, description="Tasks a step, over all processes.")
    members: int = Field(8, ge=2, description="Rollouts a task: one alone has no advantage.")
    temperature: float = Field(
        1.0, gt=0, description="Of the sampler and of the learner's log-probs."
    )
    clip_norm: float = Field(1.0, gt=0, description="Bound of the gradient's norm.")
    b2: float = Field(0.95, ge=0, lt=1, description="Decay of AdamW's second moment.")
    members_at_once: int = Field(
        0, ge=0, description="Members of a group in a micro-batch; 0 for whole groups."
    )
    validate_every: int = Field(
        0, ge=0, description="Steps between two validations; the best weights are stored. 0: none."
    )
    expected_reward: bool = Field(
        False,
        description="Average a reward over a task's candidates, by the probability of each as the "
        "target given the orders of all tools and the policy's own ranking.",
    )
    groups: GroupWeighting = GroupWeighting()
    oversample: int = Field(0, ge=0, description="Most further rounds that replace dropped groups.")
    stop_spread: float = Field(
        0.0,
        ge=0,
        description="The stage ends early once advantage_spread has stayed below it. 0: never.",
    )
    stop_steps: int = Field(5, ge=1, description="Steps in a row below stop_spread that end it.")
    entropy_target: float = Field(
        0.0,
        ge=0,
        description="Mean entropy of decision tokens, in nats, that a bonus aims at; 0: no bonus.",
    )
    entropy_rate: float = Field(
        0.01, gt=0, description="Rise of the bonus's coefficient in a step for a lack of 1 nat."
    )
    forced_calls: int = Field(
        0,
        ge=0,
        description="Members of a group whose first call is forced, each to another tool in turn.",
    )
    loss: GrpoLossConfig = GrpoLossConfig()
    loss_fn: str = Field("", description="Loss of your own: package.module:function.")
    advantage_fn: str = Field("", description="Advantages of your own: package.module:function.")
    reference: bool = Field(
        False, description="Give the loss reference_logprobs; with a kl_coef always."
    )

    def __post_init__(self):
        TrainingConfig.__post_init__(self)
        groups = self.groups
        # Names alone: a computation would start JAX's backend, and configurations are made before
        # several processes join or a TPU slice is described.
        for name, known in (
            ("baseline", BASELINES),
            ("scale", SCALES),
            ("aggregation", AGGREGATIONS),
        ):
            value = getattr(groups, name)
            expect(value in known, f"groups.{name}", value, f"one of {', '.join(known)}")
        expect(
            not (self.expected_reward and groups.rank_credit),
            "groups.rank_credit",
            groups.rank_credit,
            "False where expected_reward is on, which depends on all places",
        )
        for name in ("plan_bonus", "imitation"):
            expect(getattr(groups, name) >= 0, f"groups.{name}", getattr(groups, name), "0 or more")
        share = groups.other_credit
        expect(0 <= share <= 1, "groups.other_credit", share, "from 0 to 1")
        share = groups.keep_variance
        expect(0 < share <= 1, "groups.keep_variance", share, "above 0 and up to 1")
        cap = groups.imitation_cap
        expect(cap >= 1, "groups.imitation_cap", cap, "1 or more")
        expect(
            groups.imitation > 0 or cap == 2, "groups.imitation_cap", cap, "2 where imitation is 0"
        )
        drops = self.groups.drop_negative or self.groups.drop_equal
        expect(
            drops or not self.oversample,
            "oversample",
            self.oversample,
            "0 where groups.drop_negative and groups.drop_equal are off",
        )
        expect(
            self.stop_spread > 0 or self.stop_steps == 5,
            "stop_steps",
            self.stop_steps,
            "5 where stop_spread is 0",
        )
        expect(
            self.entropy_target > 0 or self.entropy_rate == 0.01,
            "entropy_rate",
            self.entropy_rate,
            "0.01 where entropy_target is 0",
        )
        expect(
            not self.entropy_target or not self.loss_fn,
            "entropy_target",
            self.entropy_target,
            "0 beside a loss_fn, since the bonus is that of grpo_loss",
        )
        expect(
            self.forced_calls <= self.members,
            "forced_calls",
            self.forced_calls,
            f"at most members {self.members}",
        )
        at_once = min(self.members_at_once, self.members)
        expect(
            not at_once or self.members % at_once == 0,
            "members_at_once",
            self.members_at_once,
            f"a divisor of members {self.members}",
        )

    @property
    def uses_reference(self) -> bool:
        """Whether batches have log-probs of the policy that the stage starts from."""
        return self.reference or self.loss.kl_coef > 0


@configuration
class MiningConfig:
    """Mining of hard pairs from the policy's rankings; the defaults are AgenticRec's."""

    mining_examples: int = Field(256, ge=0, description="Policy examples that are mined; 0: all.")
    mining_members: int = Field(
        1, ge=1, description="Rankings of an example: one is greedy, several are sampled."
    )
    mining_temperature: float = Field(1.0, gt=0, description="Of several rankings.")
    mining_chunk: int = Field(
        0, ge=0, description="Examples between two saves of rankings; 0: one save of all."
    )
    mining_rule: Literal["uniform", "uncertain", "decidable", "both"] = Field(
        "uniform",
        description="Pairs to draw from: all violated ones, those with a violation in mining_band, "
        "those that a visible order decides, or those of both kinds.",
    )
    mining_band: tuple[float, float] = Field(
        MINING_BAND,
        description="Least and greatest share of rankings that violate an uncertain pair.",
    )

    def __post_init__(self):
        low, high = self.mining_band
        expect(0 <= low <= high <= 1, "mining_band", self.mining_band, "0 <= low <= high <= 1")
        sampled = self.mining_members > 1
        expect(
            sampled or not self.uses_band,
            "mining_rule",
            self.mining_rule,
            "uniform or decidable where mining_members is 1: every violation is 1 then",
        )
        expect(
            self.uses_band or self.mining_band == MINING_BAND,
            "mining_band",
            self.mining_band,
            f"{MINING_BAND} with mining_rule {self.mining_rule}",
        )
        expect(
            sampled or self.mining_temperature == 1,
            "mining_temperature",
            self.mining_temperature,
            "1 where mining_members is 1, which is greedy",
        )

    @property
    def uses_band(self) -> bool:
        """Whether the violation of a pair decides if it is taken."""
        return self.mining_rule in ("uncertain", "both")

    @property
    def pair_rule(self) -> PairRule:
        """The rule for the pairs to draw from."""
        low, high = self.mining_band if self.uses_band else (0.0, 1.0)
        return PairRule(low, high, decidable=self.mining_rule in ("decidable", "both"))


@configuration
class PprConfig(MiningConfig, GrpoConfig):
    """Stage ``ppr``: progressive preference refinement on mined hard pairs."""

    steps: int = Field(8, ge=1, description="Updates.")
    learning_rate: float = Field(3e-5, gt=0, description="Peak rate of AdamW.")
    rank_share: float = Field(
        0.25, ge=0, lt=1, description="Share of ranking tasks among the questions."
    )
    heldout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the violated examples whose pairs only measure, before and after.",
    )

    def __post_init__(self):
        GrpoConfig.__post_init__(self)
        MiningConfig.__post_init__(self)


@configuration
class PairsConfig(MiningConfig, TrainingConfig):
    """Stage ``pairs``: preference losses on pairs without rollouts."""

    file: str = Field("", description="Pairs to read; none: mined with the stage's first policy.")
    objective: Literal["logistic", "dpo", "sdpo"] = Field(
        LOGISTIC, description="PPR's logistic form, DPO or S-DPO."
    )
    beta: float | None = Field(None, gt=0, description="None: .1 for dpo, 1 for sdpo.")
    negatives: int = Field(1, ge=1, description="Rejected items that sdpo sets the target against.")
    epochs: int = Field(2, ge=1, description="Passes over the pairs.")
    batch: int = Field(16, ge=1, description="Pairs an update.")
    completion_buckets: Buckets = Field(
        16, description="Padded lengths of answers, or one number for its multiples."
    )
    learning_rate: float = Field(3e-5, gt=0, description="Peak rate of AdamW.")
    clip_norm: float = Field(1.0, gt=0, description="Bound of the gradient's norm.")
    b2: float = Field(0.95, ge=0, lt=1, description="Decay of AdamW's second moment.")
    validate_every: int = Field(0, ge=0, description="Steps between two validations; 0: none.")

    def __post_init__(self):
        TrainingConfig.__post_init__(self)
        MiningConfig.__post_init__(self)
        used = self.beta is None or self.objective != LOGISTIC
        expect(used, "beta", self.beta, f"None with objective {LOGISTIC}, which has no reference")
        enough = self.negatives == 1 or self.objective == SOFTMAX_DPO
        expect(enough, "negatives", self.negatives, f"1 with objective {self.objective}")
