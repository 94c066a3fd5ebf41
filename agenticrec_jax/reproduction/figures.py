"""The papers' figures: the steps that each needs, its rows of numbers, and its drawing.

A figure is drawn from the folders of steps: those of the table where it has them, and further ones
with another setting. What is missing, and why, stands in its caption.
"""

import csv
import dataclasses
import functools
import io
import itertools
import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence

from agenticrec_jax import strict_json
from agenticrec_jax.bundled import resolve
from agenticrec_jax.data.candidates import read_candidate_lists
from agenticrec_jax.errors import expect
from agenticrec_jax.evaluation import drawings
from agenticrec_jax.evaluation.paper_cells import AGENTICREC, RECTHINKER
from agenticrec_jax.evaluation.paper_table import row_of
from agenticrec_jax.evaluation.rankings import Ranking, Target, read_rankings
from agenticrec_jax.paths import Path, glob, write_whole
from agenticrec_jax.reproduction.logs import Log
from agenticrec_jax.reproduction.methods import METHODS, PPR, RTA, Stage
from agenticrec_jax.reproduction.plan import CANDIDATES, Plan
from agenticrec_jax.reproduction.rows import SPLIT
from agenticrec_jax.reproduction.steps import Failure, Step
from agenticrec_jax.runs.data import load_log
from agenticrec_jax.runs.policy import count_parameters
from agenticrec_jax.runtime.metric_logging import FILE_NAME, read_metrics
from agenticrec_jax.tokenizers.load import load_tokenizer
from agenticrec_jax.types import SAMPLED

GROUP_SIZES = (2, 4, 8, 16)
HISTORY_LENGTHS = (2, 5, 10)
HELD_OUT = 0.25  # share of the violated examples, where the configuration holds none out
ROW = {AGENTICREC: "rta", RECTHINKER: "recthinker"}  # trained anew for each setting
BEFORE_AND_AFTER = {
    AGENTICREC: ("frozen", "rta_ppr"),
    RECTHINKER: ("recthinker_frozen", "recthinker"),
}


@dataclasses.dataclass(frozen=True)
class PaperFigure:
    """A figure of the papers.

    Attributes:
      name: of its files.
      caption: a sentence on what it shows.
      steps: the steps that it is drawn from, by a name that its rows know them by.
      rows: its numbers or texts, ready for CSV, from the folders of the steps that are done.
      draw: its drawing from the rows.
      lacks: sentences on what cannot be there whatever is done.
    """

    name: str
    caption: str
    steps: Mapping[str, Step]
    rows: Callable[[Mapping[str, Path]], list[dict]]
    draw: drawings.Drawing
    lacks: Sequence[str] = ()

    def write(self, folder: Path, inputs: Mapping[str, Path], reasons: Mapping[str, str]) -> None:
        """Writes ``<name>.png``, ``.svg``, ``.json`` and ``.csv``.

        Args:
          folder: to write to.
          inputs: folders of the steps that are done, by name.
          reasons: why the others are not, by name.
        """
        ours = {name: inputs[name] for name in self.steps if name in inputs}
        missing = [f"{self.steps[n].name}: {reasons[n]}" for n in self.steps if n in reasons]
        rows = self.rows(ours)
        missing += self.lacks
        if not rows and not missing:
            missing.append("the steps that are done left nothing to show")
        caption = self.caption + "".join(f" Missing: {each.rstrip('.')}." for each in missing)
        record = {"figure": self.name, "caption": self.caption, "missing": missing, "rows": rows}
        text = strict_json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        write_whole(folder / f"{self.name}.json", text)
        write_whole(folder / f"{self.name}.csv", _table(rows))
        draw = self.draw if rows else drawings.draw_missing
        drawings.save_drawing(draw(rows, caption), folder / self.name)


def figures_step(plan: Plan, log: Log, policies: Sequence[str] = ()) -> Step:
    """Returns the step that draws all figures of a plan's paper on a log.

    Args:
      plan: of the table, whose steps the figures share.
      log: of the table.
      policies: further policy directories, for the figure of policy sizes.
    """
    figures = figures_of(plan, log, policies)
    inputs = {f"{f.name}/{name}": step for f in figures for name, step in f.steps.items()}

    def work(folder: Path, inputs: Mapping[str, Path], missing: Mapping[str, Failure]) -> None:
        for figure in figures:
            start = f"{figure.name}/"
            ours = {n.removeprefix(start): p for n, p in inputs.items() if n.startswith(start)}
            reasons = {
                n.removeprefix(start): failure.reason
                for n, failure in missing.items()
                if n.startswith(start)
            }
            figure.write(folder, ours, reasons)

    settings = {"paper": plan.paper, "log": log.name, "figures": [f.caption for f in figures]}
    settings["lacks"] = [list(figure.lacks) for figure in figures]
    title = f"figures of {plan.paper}, {log.name}"
    return Step(title, "figures", work, settings, inputs, partial=True)


def figures_of(plan: Plan, log: Log, policies: Sequence[str] = ()) -> list[PaperFigure]:
    """Returns the figures of a plan's paper on a log; see `figures_step`."""
    figures = [
        _training(plan, log),
        _sweep(
            plan,
            log,
            "group_size",
            "members of a group",
            {size: _changed(plan, "rta", members=size) for size in GROUP_SIZES},
            logarithmic=True,
        ),
        _policy_size(plan, log, policies),
        _sweep(
            plan,
            log,
            "history_length",
            "events of the history",
            {
                length: _changed(plan, "dataset", max_history=length)
                for length in sorted({*HISTORY_LENGTHS, plan.config.dataset.max_history})
            },
        ),
    ]
    if plan.paper == AGENTICREC:  # RecThinker has no stage of preferences
        figures.append(_preference(plan, log))
    return [*figures, _case(plan, log)]


def _changed(plan: Plan, section: str, **values: int | float | str) -> Plan:
    """Returns the plan with other values in a section of its configuration."""
    sections = {section: dataclasses.replace(getattr(plan.config, section), **values)}
    note = " ".join(f"{section}.{name} {value}" for name, value in values.items())
    config = dataclasses.replace(plan.config, **sections)
    return dataclasses.replace(plan, config=config, note=note)


def _training(plan: Plan, log: Log) -> PaperFigure:
    stages: tuple[Stage, ...] = METHODS[BEFORE_AND_AFTER[plan.paper][1]].stages
    chain = (*plan.warm_start, *stages)
    steps = {}
    for end, stage in enumerate(chain, 1):
        if stage in (RTA, PPR):
            for seed in plan.seeds:
                steps[f"{stage.name}/{seed}"] = plan.stage(log, chain[:end], seed)

    def rows(folders: Mapping[str, Path]) -> list[dict]:
        lines = []
        before = 0
        for stage in dict.fromkeys(name.split("/")[0] for name in steps):
            last = 0
            for name, folder in folders.items():
                if name.split("/")[0] != stage:
                    continue
                for line in read_metrics(folder / FILE_NAME):
                    if line["stage"] == stage:
                        last = max(last, line["step"])
                        row = {"stage": stage, "seed": int(name.split("/")[1])}
                        row["step"] = before + line["step"]
                        values = ("reward", "ndcg@10", "tool_calls", "valid")
                        lines.append(row | {key: line.get(key) for key in values})
            before += last
        return lines

    caption = f"Reward, NDCG@10 and tool calls of the rollouts over training, {log.name}."
    return PaperFigure("training", caption, steps, rows, drawings.draw_training)


def _sweep(
    plan: Plan,
    log: Log,
    name: str,
    label: str,
    plans: Mapping[int, Plan],
    logarithmic: bool = False,
    lacks: Sequence[str] = (),
) -> PaperFigure:
    """Returns the figure of a paper's row over a setting; ``plans`` has the plan of each value."""
    row = ROW[plan.paper]
    steps = {
        f"{value}/{seed}": each.row(log, METHODS[row], seed)
        for value, each in plans.items()
        for seed in plan.seeds
    }

    def rows(folders: Mapping[str, Path]) -> list[dict]:
        measured = []
        for value in plans:
            ours = [folders[f"{value}/{s}"] for s in plan.seeds if f"{value}/{s}" in folders]
            if ours:
                measured.append({name: value} | _measured(row, ours))
        return measured

    caption = (
        f"Row {row} over {label}, {log.name}: NDCG@10 with the 95% interval over users, and tool "
        f"calls; mean over seeds."
    )
    draw = functools.partial(drawings.draw_sweep, x=name, label=label, log=logarithmic)
    return PaperFigure(name, caption, steps, rows, draw, lacks)


def _measured(row: str, folders: Sequence[Path]) -> dict:
    """Returns the metrics of a row over the folders of its seeds."""
    rankings: list[Ranking] = []
    for folder in folders:
        rankings += read_rankings(folder / f"evaluation_{row}_{SPLIT}.parquet")
    ranked = {ranking.example for ranking in rankings}
    lists = read_candidate_lists(folders[0] / CANDIDATES)
    targets = {e.example: Target(e.target, e.user) for e in lists if e.example in ranked}
    metrics = row_of(row, rankings, targets)
    low, high = metrics["ndcg@10_interval"]
    values = {key: metrics[key] for key in ("hr@1", "ndcg@10", "mean_tool_calls", "invalid_rate")}
    values |= {"low": low, "high": high, "seed_spread": metrics["seed_spread"]["ndcg@10"]}
    return values | {"seeds": len(folders), "n": len(targets)}


def _policy_size(plan: Plan, log: Log, policies: Sequence[str]) -> PaperFigure:
    plans = {}
    for directory in dict.fromkeys((plan.config.policy.directory, *policies)):
        tiny = plan.tiny and directory == plan.config.policy.directory
        of_policy = _changed(dataclasses.replace(plan, tiny=tiny), "policy", directory=directory)
        size = count_parameters(directory)
        expect(
            size not in plans, "flag --policies", directory, f"a policy of not {size} parameters"
        )
        plans[size] = of_policy
    lacks = []
    if len(plans) < 2:
        lacks.append("other sizes, since flag --policies names no policy of another size")
    label = "parameters of the policy"
    return _sweep(plan, log, "policy_size", label, plans, logarithmic=True, lacks=lacks)


def _preference(plan: Plan, log: Log) -> PaperFigure:
    if not plan.config.ppr.heldout:
        plan = _changed(plan, "ppr", heldout=HELD_OUT)
    steps = {str(seed): plan.stage(log, (RTA, PPR), seed) for seed in plan.seeds}

    def rows(folders: Mapping[str, Path]) -> list[dict]:
        answers = []
        for seed, folder in folders.items():
            lines = read_metrics(folder / FILE_NAME)
            for line in (line for line in lines if line["stage"] == "ppr_heldout"):
                row = {"seed": int(seed), "moment": "after" if line["step"] else "before"}
                row |= {"accuracy": line["accuracy"], "invalid": line["invalid"]}
                answers.append(row | {k: line[f"accuracy_{k}"] for k in ("low", "high")})
        return answers

    caption = (
        f"Accuracy on preference questions about held-out pairs before and after stage ppr, with "
        f"the 95% interval over users, {log.name}."
    )
    return PaperFigure("preference", caption, steps, rows, drawings.draw_preference)


def _case(plan: Plan, log: Log) -> PaperFigure:
    seed = plan.seeds[0]
    names = BEFORE_AND_AFTER[plan.paper]
    steps = {row: plan.row(log, METHODS[row], seed) for row in names} | plan.raw(log)

    def rows(folders: Mapping[str, Path]) -> list[dict]:
        if len(folders) < len(steps):
            return []
        frozen, trained = (
            _read_records(folders[row] / f"evaluation_{row}_{SPLIT}.jsonl") for row in names
        )
        items = load_log(plan.dataset_of(log, folders)).log.items
        titles = dict(zip(items.item_id, items.title, strict=True))
        tokenizer = load_tokenizer(resolve(plan.config.policy.directory))
        return case_rows(frozen, trained, names, titles, tokenizer.decode)

    caption = f"One test example of {log.name} in full, by row {names[1]} of seed {seed}."
    return PaperFigure("case", caption, steps, rows, drawings.draw_case)


def case_rows(
    frozen: Sequence[Mapping],
    trained: Sequence[Mapping],
    names: Sequence[str],
    titles: Mapping[str, str],
    decode: Callable[[Sequence[int]], str],
) -> list[dict]:
    """Returns one episode in full: ``by`` whom and ``text``, in order; none if no tool helped.

    It is the example that the trained policy ranks best with a tool, and of these the one that the
    frozen policy ranks worst; a missed or invalid target is the worst.

    Args:
      frozen: lines of `evaluations.write_trajectories` of the policy before training.
      trained: of the same examples after it.
      names: of the rows of both.
      titles: of items, by id.
      decode: text of token ids.
    """
    ranks = {each["example_id"]: each["rank"] or math.inf for each in frozen}
    ranked = [each for each in trained if each["rank"] and each["calls"]]
    if not ranked:
        return []
    case = min(ranked, key=lambda each: (each["rank"], -ranks[each["example_id"]]))
    target = case["ranking"][case["rank"] - 1]
    history = [f"  h{n}. {titles[item]}" for n, item in enumerate(case["history_ids"], 1)]
    candidates = [
        f"{'→' if n == target else ' '} {n:2}. {titles[item]}"
        for n, item in enumerate(case["candidate_ids"], 1)
    ]
    lines = ["history:", *history, "candidates (→ is the target):", *candidates]
    rows = [{"by": "prompt", "text": "\n".join(lines)}]
    for origin, tokens in itertools.groupby(
        zip(case["origin"], case["ids"], strict=True), key=operator.itemgetter(0)
    ):
        by = "policy" if origin == SAMPLED else "tool"
        rows.append({"by": by, "text": decode([token for _, token in tokens])})
    rank = ranks[case["example_id"]]
    before = "not in its list" if rank == math.inf else f"at rank {rank}"
    calls = len(case["calls"])
    text = (
        f"Row {names[1]} has the target, candidate {target}, at rank {case['rank']} after "
        f"{calls} call{'s' * (calls > 1)}; in row {names[0]} it was {before}."
    )
    return [*rows, {"by": "outcome", "text": text}]


def _read_records(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _table(rows: Sequence[Mapping]) -> str:
    """Returns rows as CSV with a head."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def describe_figures(folder: Path) -> list[str]:
    """Returns a line for each figure of `figures_step`, and one for each thing it lacks."""
    lines = []
    for path in glob(folder, "*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "figure" in record:  # not the mark of the step
            picture = path.with_suffix(f".{drawings.FORMATS[0]}")
            lines.append(f"figure: {picture} (.svg, .json, .csv), {len(record['rows'])} rows")
            lines += [f"  missing: {each}" for each in record["missing"]]
    return lines
