"""Configuration of the pretraining of a tiny policy."""

from typing import Literal

from pydantic import Field

from agenticrec_jax.errors import expect
from agenticrec_jax.runs.validation import configuration

Skill = Literal[
    "fusing",
    "weighing",
    "pairing",
    "answering",
    "reading",
    "drafting",
    "episodes",
    "choosing",
    "preferring",
    "concluding",
]
Lesson = tuple[tuple[Skill, ...], int]


@configuration
class PretrainingConfig:
    """Making of a tiny policy: its architecture, and the skills that it is taught first."""

    vocab_size: int = Field(3584, ge=1, description="Pieces of the tokenizer.")
    hidden_size: int = Field(192, ge=1, description="Width of the residual stream.")
    intermediate_size: int = Field(528, ge=1, description="Width of the feed-forward layer.")
    num_layers: int = Field(6, ge=4, description="Transformer blocks.")
    num_heads: int = Field(4, ge=1, description="Query heads.")
    num_kv_heads: int = Field(4, ge=1, description="Key and value heads.")
    head_dim: int = Field(48, ge=2, description="Width of a head.")
    rope_theta: float = Field(10000.0, gt=0, description="Base of the rotary frequencies.")
    lessons: tuple[Lesson, ...] = Field(
        (
            (("reading", "fusing", "reading", "episodes"), 1900),
            (("weighing", "choosing", "choosing", "drafting"), 960),
        ),
        description="Skills in turn, and steps.",
    )
    review: tuple[Lesson, ...] = Field(
        (),
        description="Likewise, of further lessons, for which the rates rise and fall once more.",
    )
    review_rate: float = Field(0.5, gt=0, description="Share of the peak rates in the review.")
    fusing: tuple[int, int] = Field((32, 5), description="Prompts and completions of a step.")
    weighing: tuple[int, int] = Field((32, 5), description="Prompts and completions of a step.")
    pairing: tuple[int, int] = Field((32, 5), description="Prompts and completions of a step.")
    answering: tuple[int, int] = Field((16, 5), description="Prompts and completions of a step.")
    reading: tuple[int, int] = Field((32, 2), description="Prompts and completions of a step.")
    drafting: tuple[int, int] = Field((32, 2), description="Prompts and completions of a step.")
    episodes: tuple[int, int] = Field((10, 3), description="Prompts and completions of a step.")
    choosing: tuple[int, int] = Field((10, 3), description="Prompts and completions of a step.")
    preferring: tuple[int, int] = Field((10, 3), description="Prompts and completions of a step.")
    concluding: tuple[int, int] = Field((16, 2), description="Prompts and completions of a step.")
    sharpness: float = Field(
        2.0, gt=0, description="Factor of the judge's scores in drafts; above 1 less at random."
    )
    learning_rate: float = Field(3e-3, gt=0, description="Peak rate of Muon.")
    embedding_rate: float = Field(4e-3, gt=0, description="Peak rate of Adam for embeddings.")
    warmup_steps: int = Field(20, ge=0, description="Updates in which the rates rise.")
    decay: float = Field(
        0.4, ge=0, le=1, description="Share of all steps, the last, in which they fall."
    )
    save_every: int = Field(50, ge=1, description="Steps between two checkpoints.")

    def __post_init__(self):
        for name, lessons in (("lessons", self.lessons), ("review", self.review)):
            steps = [steps for _, steps in lessons]
            expect(min(steps, default=1) > 0, name, lessons, "lessons of 1 step or more")
        expect(
            bool(self.lessons + self.review), "lessons", self.lessons, "a lesson, or one of review"
        )
