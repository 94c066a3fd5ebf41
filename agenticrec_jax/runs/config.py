"""Configuration of a run as frozen dataclasses.

`RunConfig` is the whole tree. Its defaults are the quickstart: the embedded Office log and the
embedded tiny policy. Every constructor checks types and ranges; `run_config` makes the tree from an
``ml_collections.ConfigDict`` (``--config=FILE`` with ``--config.KEY=VALUE``), and `config_dict` is
its inverse.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder
from pydantic import Field, field_validator

from agenticrec_jax.dtypes import named
from agenticrec_jax.errors import expect
from agenticrec_jax.generation.config import EngineConfig
from agenticrec_jax.models.lora import LoraConfig
from agenticrec_jax.runs.language_config import (
    LlaraConfig,
    ReReConfig,
    SDpoConfig,
    TallrecConfig,
    TitleSftConfig,
)
from agenticrec_jax.runs.pretraining_config import PretrainingConfig
from agenticrec_jax.runs.stage_config import (
    GrpoConfig,
    PairsConfig,
    PprConfig,
    SelfSftConfig,
    WarmStartConfig,
)
from agenticrec_jax.runs.validation import configuration, parse
from agenticrec_jax.tools.text import ToolOptions

# Settings that hold a path. ``~`` in them is the home directory.
PATH_SETTINGS = (
    "dataset.interactions",
    "dataset.items",
    "dataset.prepared",
    "policy.directory",
    "profiles.file",
    "profiles.model",
    "pairs.file",
)
SequentialRow = Literal["bpr", "gru4rec", "caser", "sasrec_bce", "rearec_erl", "rearec_prl"]
Dtype = Literal["float32", "bfloat16", "float16"]


@configuration
class DatasetConfig:
    """The interaction log, its split and its candidates."""

    name: str = Field("", description="Name of the log in results; none: that of its files.")
    interactions: str = Field(
        "tools_data/office_sample/interactions.csv.gz", description="Table of events."
    )
    items: str = Field("tools_data/office_sample/items.jsonl.gz", description="Table of items.")
    prepared: str = Field("", description="Output of prepare_data, in place of the two tables.")
    max_history: int = Field(
        10, ge=1, description="Newest events of a user that SASRec and prompts read."
    )
    split: Literal["chronological", "leave_one_out"] = Field(
        "chronological", description="Division into policy, valid and test examples."
    )
    negatives: int = Field(19, ge=1, description="Candidates of an example beside the target.")
    candidate_seed: int = Field(0, ge=0, description="Seed of the draw of candidates.")

    @property
    def label(self) -> str:
        """Name of the log in results: ``name``, or else that of its files.

        A file ``interactions``, as `prepare_data` writes it, is named by its directory.

        >>> DatasetConfig().label
        'office_sample'
        >>> DatasetConfig(interactions="logs/beauty.csv.gz").label
        'beauty'
        >>> DatasetConfig(prepared="logs/movies").label
        'movies'
        """
        if self.name:
            return self.name
        if self.prepared:
            return Path(self.prepared).resolve().name
        table = Path(self.interactions)
        stem = Path(table.name.removesuffix(".gz")).stem
        return table.resolve().parent.name if stem == "interactions" else stem


@configuration
class SasrecSettings:
    """The SASRec of the collaborative tools."""

    epochs: int = Field(25, ge=1, description="Passes over the users' windows.")
    dim: int = Field(64, ge=1, description="Width of an embedding.")
    blocks: int = Field(2, ge=1, description="Transformer blocks.")
    heads: int = Field(2, ge=1, description="Attention heads.")
    dropout: float = Field(0.4, ge=0, lt=1, description="Share of activations dropped in training.")
    seed: int = Field(0, ge=0, description="Seed of initialization, order and dropout.")

    def __post_init__(self):
        expect(self.dim % self.heads == 0, "dim", self.dim, f"a multiple of heads {self.heads}")


@configuration
class ToolsConfig:
    """The tools' observations; see `tools.text.ToolOptions`."""

    evidence_length: int = Field(10, ge=1, description="Candidate numbers that an order shows.")
    title_words: int = Field(3, ge=1, description="Words of a title that an observation shows.")
    candidate_evidence: bool = Field(
        True, description="Collaborative tools also order the candidates (the paper's do not)."
    )
    detail: Literal["compact", "full"] = Field(
        "compact", description="full: candidates_analyze groups by category, brand and price too."
    )
    profile_words: int = Field(200, ge=1, description="Words of a stored profile that are shown.")
    neighbors: int = Field(1500, ge=1, description="Nearest users that get_similar_users counts.")
    related_titles: int = Field(
        5, ge=1, description="Titles of a relation that search_knowledge_graph lists."
    )
    extra: str = Field(
        "", description="Tools of your own: package.module:Class, separated by commas."
    )
    disabled: tuple[str, ...] = Field(
        (), description="Names of tools that are not offered, the agent's or your own."
    )

    def __post_init__(self):
        different = len(set(self.disabled)) == len(self.disabled)
        expect(different, "disabled", self.disabled, "each tool once")

    def options(self) -> ToolOptions:
        """Returns the options that every tool takes."""
        return ToolOptions(
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(ToolOptions)}
        )


@configuration
class LoraSettings:
    """Low-rank adapters of the policy."""

    rank: int = Field(0, ge=0, description="0: every parameter is trained.")
    alpha: float = Field(32.0, gt=0, description="Adapters count alpha / rank times.")
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj"), description="Projections with adapters."
    )

    def __post_init__(self):
        LoraConfig(rank=max(self.rank, 1), alpha=self.alpha, targets=self.targets)

    def adapters(self) -> LoraConfig | None:
        """Returns the adapters to add; None for rank 0."""
        return LoraConfig(self.rank, self.alpha, self.targets) if self.rank else None


@configuration
class PolicyConfig:
    """The policy: its directory, its prompts and how its numbers are computed."""

    directory: str = Field(
        "tools_data/tiny_policy", description="Weights and tokenizer as Hugging Face has them."
    )
    title_tokens: int = Field(8, ge=1, description="Tokens of a title in prompts.")
    prompt_style: Literal["auto", "compact", "chat"] = Field(
        "auto", description="auto: the style of the policy's tokenizer."
    )
    observation_style: Literal["auto", "tool_response", "observation"] = Field(
        "auto", description="auto: the prompt style's own."
    )
    observation_tokens: int = Field(
        128, ge=0, description="Most tokens of an observation; 0 for any number."
    )
    dtype: Dtype = Field("float32", description="Activations.")
    param_dtype: Dtype = Field("float32", description="Parameters.")
    scan_layers: bool = Field(False, description="Scan stacked layers (for TPU and GPU).")
    remat: Literal["none", "full", "dots"] = Field(
        "none", description="Activations that the backward pass computes again."
    )
    attention: Literal["auto", "xla", "cudnn", "splash"] = Field(
        "auto", description="Implementation; auto: the device's own."
    )
    lora: LoraSettings = LoraSettings()

    @field_validator("dtype", "param_dtype", mode="before")
    @classmethod
    def _by_name(cls, dtype: Any) -> Any:
        return named(dtype)

    def computation(self) -> dict[str, Any]:
        """Returns how the policy is computed: options of ``load_policy``."""
        names = ("dtype", "param_dtype", "scan_layers", "remat", "attention")
        return {name: getattr(self, name) for name in names}


@configuration
class ProfilesConfig:
    """Users' long-term profiles, written by ``make_profiles`` and read by ``get_user_profile``."""

    file: str = Field("", description="Profiles to read; none: statistics in their place.")
    model: str = Field("", description="Policy directory that writes them; none: the policy's.")
    events: int = Field(40, ge=0, description="Newest events in a prompt; 0 for all.")
    words: int = Field(30, ge=1, description="Words that the prompt asks for.")
    max_tokens: int = Field(64, ge=1, description="Most tokens of a profile.")
    temperature: float = Field(0.0, ge=0, description="0 is greedy.")
    save_every: int = Field(512, ge=1, description="Profiles between two saves.")


@configuration
class MeshConfig:
    """Devices along each axis of the mesh, over all processes."""

    slices: int = Field(
        1,
        ge=1,
        description="Slices with a slow network between them, each with a copy of data x "
        "fsdp x tensor devices.",
    )
    data: int = Field(1, ge=1, description="Devices that split the batch.")
    fsdp: int = Field(1, ge=1, description="Devices that split parameters and the batch.")
    tensor: int = Field(1, ge=1, description="Devices that split each layer.")


@configuration
class EvaluationConfig:
    """Sizes of the evaluation; 0 for all examples."""

    examples: int = Field(500, ge=0, description="Test examples of the quickstart.")
    validation_examples: int = Field(
        0, ge=0, description="Valid examples of validation, of the best plan and the best fusion."
    )
    fitting_examples: int = Field(
        0,
        ge=0,
        description="Policy examples of linear_combination, and up to 1,000 of expected rewards.",
    )
    sequential: tuple[SequentialRow, ...] = Field(
        (),
        description="Rows beside sasrec, fitted with its epochs and width: bpr, gru4rec, caser, "
        "sasrec_bce, rearec_erl, rearec_prl.",
    )
    trained_no_tools: bool = Field(
        False, description="Also train rta without tools in each seed, for the row of that name."
    )
    ablations: bool = Field(
        False, description="Also evaluate the trained policy with each tool away, a row each."
    )

    def __post_init__(self):
        different = len(set(self.sequential)) == len(self.sequential)
        expect(different, "sequential", self.sequential, "each row once")


@configuration
class LoggingConfig:
    """Outputs of training beside its metrics; no number of a run depends on it."""

    rollout_groups: int = Field(
        2,
        ge=0,
        description="Groups of rollouts that a recorded step writes for the report; 0: none.",
    )
    rollout_every: int = Field(
        5, ge=1, description="Steps between two recorded ones; the first step is always recorded."
    )
    trackers: tuple[Literal["trackio", "wandb"], ...] = Field(
        (), description="Trackers that get the metrics too: trackio, wandb (extras)."
    )
    project: str = Field("agenticrec", min_length=1, description="Project of the trackers.")

    def __post_init__(self):
        different = len(set(self.trackers)) == len(self.trackers)
        expect(different, "trackers", self.trackers, "each tracker once")


@configuration
class RunConfig:
    """Everything that a run depends on."""

    dataset: DatasetConfig = DatasetConfig()
    sasrec: SasrecSettings = SasrecSettings()
    agent: Literal["agenticrec", "recthinker"] = Field(
        "agenticrec", description="Tools, prompts and calls."
    )
    tools: ToolsConfig = ToolsConfig()
    policy: PolicyConfig = PolicyConfig()
    profiles: ProfilesConfig = ProfilesConfig()
    engine: EngineConfig = EngineConfig(
        slots=128,
        max_tokens=288,
        decode_steps=32,
        prompt_buckets=(64, 128, 256, 320, 512),
        splice_buckets=(16, 48),
    )
    pretraining: PretrainingConfig = PretrainingConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    self_sft: SelfSftConfig = SelfSftConfig()
    reward: str = Field(
        "agenticrec", description="agenticrec, recthinker, or package.module:function."
    )
    rta: GrpoConfig = GrpoConfig()
    ppr: PprConfig = PprConfig()
    pairs: PairsConfig = PairsConfig()
    tallrec: TallrecConfig = TallrecConfig()
    llara: LlaraConfig = LlaraConfig()
    title_sft: TitleSftConfig = TitleSftConfig()
    s_dpo: SDpoConfig = SDpoConfig()
    rere: ReReConfig = ReReConfig()
    mesh: MeshConfig = MeshConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()
    seed: int = Field(0, ge=0, description="Seed of training and sampling.")
    preparation: dict[str, Any] | None = Field(None, description="Settings of prepare_data.")

    def __post_init__(self):
        most = self.dataset.negatives
        for stage in ("pairs", "tallrec", "s_dpo"):
            negatives = getattr(self, stage).negatives
            at_most = f"at most dataset.negatives {most}"
            expect(negatives <= most, f"{stage}.negatives", negatives, at_most)


def run_config(values: ConfigDict) -> RunConfig:
    """Returns the typed configuration of an ``ml_collections`` one.

    Raises:
      InputError: names the key of the first setting that is unknown, of another type, out of
        range, or without effect.
    """
    return parse(RunConfig, values.to_dict())


def config_dict(config: Any) -> ConfigDict:
    """Returns a configuration as a ``ConfigDict``, whose flags keep the types of the fields."""
    values = ConfigDict()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = config_dict(value)
        elif value is None and float in get_args(field.type):
            value = placeholder(float)  # None, but a flag still knows the type
        values[field.name] = value
    return values


def default_config() -> ConfigDict:
    """Returns the defaults of `RunConfig`, for a configuration file to change."""
    return config_dict(RunConfig())
