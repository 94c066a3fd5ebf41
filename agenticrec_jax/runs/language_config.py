"""Configurations of the stages of language models without the agent, the papers' baselines."""

from pydantic import Field

from agenticrec_jax.runs.stage_config import Buckets, TrainingConfig
from agenticrec_jax.runs.validation import configuration


@configuration
class AnswersConfig(TrainingConfig):
    """Settings of the stages that ask a model about policy examples, without tools."""

    examples: int = Field(0, ge=0, description="Policy examples to learn from; 0 for all.")
    epochs: int = Field(3, ge=1, description="Passes over the examples.")
    batch: int = Field(32, ge=1, description="Examples an update.")
    save_every: int = Field(20, ge=1, description="Steps between two checkpoints.")


@configuration
class TallrecConfig(AnswersConfig):
    """Stage ``tallrec``: yes or no to single candidates (TALLRec), without tools."""

    negatives: int = Field(1, ge=1, description="Candidates answered by no, beside the target.")
    title_words: int = Field(20, ge=1, description="Words of a title that a question shows.")
    prompt_buckets: Buckets = Field(64, description="Padded lengths of histories, or a step.")
    completion_buckets: Buckets = Field(16, description="Padded lengths of questions, or a step.")


@configuration
class TitleConfig(AnswersConfig):
    """Settings of the stages whose answers are titles of candidates."""

    epochs: int = Field(5, ge=1, description="Passes over the examples.")
    prompt_buckets: Buckets = Field(128, description="Padded lengths of questions, or a step.")
    completion_buckets: Buckets = Field(16, description="Padded lengths of titles, or a step.")


@configuration
class LlaraConfig(TitleConfig):
    """Stage ``llara``: the target's title, from titles and projected SASRec embeddings (LLaRA)."""

    title_words: int = Field(12, ge=1, description="Words of a title in questions and answers.")


@configuration
class TitleSftConfig(TitleConfig):
    """Stage ``title_sft``: the target's title, from titles. ``s_dpo``, ``rere`` start from it."""

    title_words: int = Field(
        12, ge=1, description="Words of a title in questions and answers, of s_dpo and rere too."
    )


@configuration
class SDpoConfig(TitleConfig):
    """Stage ``s_dpo``: the target's title against those of other candidates (S-DPO)."""

    beta: float = Field(1.0, gt=0, description="Inverse strength of leaving the reference policy.")
    negatives: int = Field(3, ge=1, description="Rejected titles of an example.")
    epochs: int = Field(3, ge=1, description="Passes over the examples.")
    learning_rate: float = Field(3e-5, gt=0, description="Peak rate of AdamW.")


@configuration
class ReReConfig(TitleConfig):
    """Stage ``rere``: reinforcement on the beams of a search over candidates' titles (ReRe)."""

    beams: int = Field(16, ge=2, description="Titles of a search: one alone has no advantage.")
    kl_coef: float = Field(1e-3, ge=0, description="Penalty of leaving the reference policy.")
    epochs: int = Field(2, ge=1, description="Passes over the examples.")
    learning_rate: float = Field(3e-5, gt=0, description="Peak rate of AdamW.")
