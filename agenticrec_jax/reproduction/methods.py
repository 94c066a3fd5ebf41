"""The methods of both papers' tables: a row each, with the stages that are trained before it.

A method is registered here and nowhere else: its ranking is a function of `rows`, its stages are
those of `runs.stages`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from agenticrec_jax.evaluation.paper_cells import AGENTICREC, RECTHINKER
from agenticrec_jax.evaluation.rankings import CHANCE
from agenticrec_jax.reproduction.rows import (
    Job,
    rank_by_agent,
    rank_by_evidence,
    rank_by_language,
    rank_by_likelihood,
    rank_by_scores,
)

# Sections of the configuration that decide what a step computes.
POLICY = ("agent", "tools", "policy", "profiles", "engine", "mesh", "reward")
LANGUAGE = ("policy", "engine", "mesh")
COUNTS: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of training, whose policy the next stage or the row takes.

    Attributes:
      name: one of `runs.stages.STAGES`.
      use_tools: whether its rollouts offer tools.
      reads: other sections of the configuration that it depends on.
      artifacts: that it reads, ``a`` and ``b``.
    """

    name: str
    use_tools: bool = True
    reads: tuple[str, ...] = POLICY
    artifacts: tuple[str, ...] = ("a",)

    @property
    def kind(self) -> str:
        """Name of its step."""
        return f"stage_{self.name}{'' if self.use_tools else '_no_tools'}"

    @property
    def section(self) -> str:
        """Section of the configuration that has its settings."""
        return "warm_start" if self.name == "sft" else self.name


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of a table.

    Attributes:
      row: its name.
      note: how it ranks, with its source, for the table.
      rank: ranks the examples and writes the row; None for chance, which is exact.
      reads: sections of the configuration that its ranking depends on.
      artifacts: that its ranking reads, ``a`` and ``b``.
      fits: whether a sequential recommender of its name is fitted before it.
      stages: trained before it, in turn, from the config's policy on.
      seeded: whether a seed changes it.
      baseline: whether it can be the best baseline, with which the others are compared.
      large: whether it needs a large language model, so that a tiny one says little of it.
      papers: in whose tables it stands.
      together: name of the step that makes its row along with others; its own if empty.
      tiny_seconds: it takes in the tiny preset on 2 cores, without its stages.
      tiny_options: of its ranking by a tiny policy, whose context is short.
    """

    row: str
    note: str
    rank: Callable[[Job], None] | None
    reads: tuple[str, ...] = COUNTS
    artifacts: tuple[str, ...] = ()
    fits: bool = False
    stages: tuple[Stage, ...] = ()
    seeded: bool = False
    baseline: bool = True
    large: bool = False
    papers: tuple[str, ...] = (AGENTICREC, RECTHINKER)
    together: str = ""
    tiny_seconds: float = 5.0
    tiny_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_agent(self) -> bool:
        """Whether the agent ranks, by the policy and its tools."""
        return self.reads is POLICY

    @property
    def takes_server(self) -> bool:
        """Whether an endpoint can take the policy's place."""
        return self.rank is rank_by_language


def _counts(row: str, note: str) -> Method:
    return Method(row, note, rank_by_scores)


def _sequential(row: str, note: str) -> Method:
    of_artifacts = row == "sasrec"  # it is the model that the tools have
    artifacts = ("b",) if of_artifacts else ()
    options = {"reads": ("sasrec",), "artifacts": artifacts, "fits": not of_artifacts}
    return Method(row, note, rank_by_scores, **options, seeded=True)


def _evidence(row: str, note: str) -> Method:
    reads = ("agent", "tools", "sasrec", "evaluation")
    options = {"artifacts": ("a", "b"), "baseline": False, "papers": (AGENTICREC,)}
    return Method(row, note, rank_by_evidence, reads, **options, together="evidence")


def _language(row: str, note: str, title_words: int, artifacts: tuple[str, ...] = ()) -> Method:
    seeded = row == "llmrank"  # it draws orders and words; the others are greedy
    options = {"artifacts": artifacts, "seeded": seeded, "large": True, "tiny_seconds": 120.0}
    options["tiny_options"] = {"title_words": title_words, "max_tokens": 128}
    return Method(row, note, rank_by_language, LANGUAGE, **options)


def _trained_language(row: str, note: str, *stages: Stage) -> Method:
    note = f"{note}, learns on policy examples"
    reads = (*stages[-1].reads, *dict.fromkeys(stage.name for stage in stages))
    options = {"artifacts": stages[-1].artifacts, "stages": stages, "seeded": True, "large": True}
    return Method(row, note, rank_by_likelihood, reads, **options, tiny_seconds=60)


def _agent(row: str, note: str, paper: str, *stages: Stage, tools: bool = True) -> Method:
    options = {"artifacts": ("b",), "stages": stages, "seeded": bool(stages)}
    options |= {"baseline": False, "large": paper == RECTHINKER, "papers": (paper,)}
    options |= {"tiny_seconds": 30.0 if tools else 10.0}
    return Method(row, note, rank_by_agent(use_tools=tools), POLICY, **options)


TALLREC = Stage("tallrec", reads=LANGUAGE, artifacts=())
LLARA = Stage("llara", reads=LANGUAGE)
TITLE_SFT = Stage("title_sft", reads=LANGUAGE, artifacts=())
S_DPO = Stage("s_dpo", reads=(*LANGUAGE, "title_sft"), artifacts=())
RERE = Stage("rere", reads=(*LANGUAGE, "title_sft"), artifacts=())
RTA = Stage("rta")
PPR = Stage("ppr")
SELF_SFT = Stage("self_sft")
SFT = Stage("sft")  # of an agent that the tiny policy was not made for, see `Plan.warm_start`

TABLE = (
    Method(CHANCE, "a uniformly random order, computed exactly", None),
    _counts("popularity", "by number of training interactions"),
    _counts("brand_popularity", "items of a brand in the history first, then by popularity"),
    _counts("cooccurrence", "by training co-occurrence with the history, then by popularity"),
    _sequential("bpr", "BPR matrix factorization (Rendle et al., UAI 2009)"),
    _sequential("gru4rec", "GRU4Rec (Hidasi et al., ICLR 2016), softmax loss"),
    _sequential("caser", "Caser (Tang and Wang, WSDM 2018), softmax loss"),
    _sequential("sasrec", "SASRec (Kang and McAuley, ICDM 2018), softmax loss"),
    _sequential("sasrec_bce", "SASRec with the loss of its paper"),
    _sequential("rearec_erl", "ReaRec, ensemble reasoning (Tang et al., 2025)"),
    _sequential("rearec_prl", "ReaRec, progressive reasoning (Tang et al., 2025)"),
    _language("llmrank", "LLMRank (Hou et al., ECIR 2024), not trained", 8),
    _language("interecagent", "InteRecAgent (Huang et al., 2023), not trained", 2, ("b",)),
    _trained_language("tallrec", "TALLRec (Bao et al., RecSys 2023)", TALLREC),
    _trained_language("llara", "LLaRA (Liao et al., SIGIR 2024)", LLARA),
    _trained_language("s_dpo", "S-DPO (Chen et al., NeurIPS 2024)", TITLE_SFT, S_DPO),
    _trained_language("rere", "ReRe (Tan et al., 2025)", TITLE_SFT, RERE),
    _evidence("scripted_agent", "the best fixed plan of tools, chosen on valid examples"),
    _evidence("best_fusion", "the best fixed weights of the tools' orders, likewise"),
    _evidence(
        "linear_combination", "a linear model of the tools' orders, fitted on policy examples"
    ),
    _agent("frozen_no_tools", "the policy before training, without tools", AGENTICREC, tools=False),
    _agent("frozen", "the policy before training, with tools", AGENTICREC),
    _agent(
        "trained_no_tools",
        "stage one without tools, the same settings and steps",
        AGENTICREC,
        Stage("rta", use_tools=False),
        tools=False,
    ),
    _agent("rta", "after stage one, list-wise GRPO", AGENTICREC, RTA),
    _agent("rta_ppr", "after stage two, preference refinement", AGENTICREC, RTA, PPR),
    _agent("recthinker_frozen", "RecThinker's agent before training", RECTHINKER),
    _agent("recthinker_sft", "after imitation of its own best trajectories", RECTHINKER, SELF_SFT),
    _agent(
        "recthinker", "after both stages, with a reward for few calls", RECTHINKER, SELF_SFT, RTA
    ),
)
METHODS = {method.row: method for method in TABLE}

# Seconds of the other steps in the tiny preset on 2 cores.
TINY_SECONDS = {
    "log": 60.0,
    "candidates": 3.0,
    "artifacts_a": 10.0,
    "artifacts_b": 10.0,
    "fit_bpr": 5.0,
    "fit_gru4rec": 15.0,
    "fit_caser": 25.0,
    "fit_sasrec_bce": 25.0,
    "fit_rearec_erl": 40.0,
    "fit_rearec_prl": 40.0,
    "stage_rta": 190.0,
    "stage_rta_no_tools": 100.0,
    "stage_ppr": 125.0,
    "stage_sft": 900.0,
    "stage_self_sft": 300.0,
    "stage_tallrec": 120.0,
    "stage_llara": 150.0,
    "stage_title_sft": 150.0,
    "stage_s_dpo": 200.0,
    "stage_rere": 400.0,
    "table": 5.0,
    "figures": 15.0,
} | {method.together or method.row: method.tiny_seconds for method in TABLE}


def methods_of(paper: str) -> list[str]:
    """Returns the rows of a paper's table, in its order."""
    return [method.row for method in TABLE if paper in method.papers]
