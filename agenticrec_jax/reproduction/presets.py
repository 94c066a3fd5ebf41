"""The configurations that ``reproduce`` knows by the name of a preset."""

from collections.abc import Mapping
from typing import NamedTuple

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.evaluation.paper_cells import AGENTICREC, RECTHINKER
from agenticrec_jax.reproduction.logs import EMBEDDED, OF_PAPER
from agenticrec_jax.runs import RunConfig, run_config


class Preset(NamedTuple):
    """A configuration and the logs that a table has if none are named.

    Attributes:
      config: of every run.
      logs: names of `logs.find_log`.
      epochs: of `plan.Plan`.
    """

    config: RunConfig
    logs: tuple[str, ...]
    epochs: Mapping[str, float]


TINY = "tiny"
PAPER = "paper"
PRESETS = (TINY, PAPER)
CONFIGS = {
    (AGENTICREC, TINY): "office",
    (AGENTICREC, PAPER): "qwen3",
    (RECTHINKER, TINY): "recthinker:tiny",
    (RECTHINKER, PAPER): "recthinker",
}


def find_preset(paper: str, preset: str) -> Preset:
    """Returns a preset of a paper.

    ``tiny`` is the embedded log and policy, in minutes on 2 cores. ``paper`` ranks every test
    example of the paper's logs, by a policy that is named; AgenticRec's stages take the paper's
    three passes and one.
    """
    values = load_config(CONFIGS[paper, preset])
    if preset == TINY:
        for stage in (values.llara, values.title_sft, values.s_dpo, values.rere):
            stage.update({"examples": 512, "epochs": 1})
        values.llara.title_words = values.title_sft.title_words = 6
        return Preset(run_config(values), EMBEDDED[:1], {})
    values.evaluation.examples = 0
    epochs = {"rta": 3.0, "ppr": 1.0} if paper == AGENTICREC else {}
    return Preset(run_config(values), OF_PAPER[paper], epochs)
