"""The steps of a paper's tables: what each computes, on what it depends, and from what it starts.

A step's folder is the workdir of a `Run` in which the candidates and artifacts of earlier steps are
links, so that every step is computed by the code of the other programs.
"""

import dataclasses
import functools
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from agenticrec_jax.agent.chat import RECTHINKER
from agenticrec_jax.bundled import resolve
from agenticrec_jax.data.candidates import candidate_hash, read_candidate_lists, read_protocol
from agenticrec_jax.data.examples import evenly_spread
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.evaluation.paper_table import row_file, write_paper_table
from agenticrec_jax.evaluation.rankings import Target
from agenticrec_jax.evaluation.table_formats import write_formats
from agenticrec_jax.paths import Path, glob, make_directory
from agenticrec_jax.reproduction.logs import Log
from agenticrec_jax.reproduction.methods import METHODS, SFT, Method, Stage
from agenticrec_jax.reproduction.rows import SPLIT, Job, Server
from agenticrec_jax.reproduction.steps import Failure, Step
from agenticrec_jax.runs import Run, RunConfig, train
from agenticrec_jax.runs.config import DatasetConfig
from agenticrec_jax.runs.data import load_log
from agenticrec_jax.runs.policy import weights_hash
from agenticrec_jax.runtime.provenance import record_provenance

CANDIDATES = "candidates.jsonl.gz"
SPLITS = ("max_history", "split")  # settings of config.dataset that fits depend on
LISTS = ("negatives", "candidate_seed")  # further ones of the candidates


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that decides the steps of a paper's tables.

    Attributes:
      paper: key of `paper_cells.PAPERS`, the name of its agent too.
      config: of every run.
      methods: rows, of `METHODS`.
      seeds: of the methods that a seed changes.
      server: in place of the policy for models that are not trained; None for none.
      epochs: passes over the policy examples by stage of reinforcement; the config's steps where
        there is none.
      tiny: whether the policy is a tiny one, which some rows are made for and the table says.
      note: in the names of its stages and rows; of a figure, the setting that is not the table's.
    """

    paper: str
    config: RunConfig
    methods: Sequence[str]
    seeds: Sequence[int]
    server: Server | None = None
    epochs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    tiny: bool = False
    note: str = ""

    def __post_init__(self):
        agent = self.config.agent
        expect(agent == self.paper, "config.agent", agent, f"{self.paper!r}, as the table's paper")

    @cached_property
    def weights(self) -> str:
        """Digest of the config's policy."""
        return weights_hash(resolve(self.config.policy.directory))

    @property
    def warm_start(self) -> tuple[Stage, ...]:
        """Stages that teach the policy its agent, before those of any row and once for all seeds.

        The embedded policy has learned AgenticRec's tools alone.
        """
        return (SFT,) if self.tiny and self.config.agent == RECTHINKER else ()

    def stages_of(self, method: Method) -> tuple[Stage, ...]:
        """Returns all stages that are trained before a row, in turn."""
        return (*self.warm_start, *method.stages) if method.is_agent else method.stages

    def table(self, log: Log) -> Step:
        """Returns the step of the table of a log; its inputs are the steps before it."""
        inputs = {"candidates": self.candidates(log)}
        rows = {row: self.seeds if METHODS[row].seeded else [] for row in self.methods}
        for row, seeds in rows.items():
            if METHODS[row].rank is not None:
                for seed in seeds or [None]:
                    inputs[row_file(row, seed)] = self.row(log, METHODS[row], seed)
        examples = self.config.evaluation.examples
        settings = {"paper": self.paper, "log": log.name, "examples": examples, "tiny": self.tiny}
        settings["rows"] = {row: list(seeds) for row, seeds in rows.items()}

        titles = {name: step.name for name, step in inputs.items()}

        def work(folder: Path, inputs: Mapping[str, Path], missing: Mapping[str, Failure]) -> None:
            reasons = {
                name: failure.reason if failure.step == titles[name] else ": ".join(failure)
                for name, failure in missing.items()
            }
            self._write_table(folder, inputs, reasons, log, rows)

        return Step(
            f"table of {self.paper}, {log.name}", "table", work, settings, inputs, partial=True
        )

    def candidates(self, log: Log) -> Step:
        """Returns the step that draws and freezes the candidates."""

        def work(folder: Path, inputs: Mapping[str, Path], missing: Mapping) -> None:
            del missing
            _ = Run(self._config(log, inputs), folder).data

        settings = self._of_log(log, (*SPLITS, *LISTS))
        name = f"candidates, {log.name}"
        return Step(name, "candidates", work, settings, self.raw(log), outputs=(CANDIDATES,))

    def prepared(self, log: Log) -> Step:
        """Returns the step that prepares a download."""

        def work(folder: Path, inputs: Mapping[str, Path], missing: Mapping) -> None:
            del inputs, missing
            log.prepare(folder)

        settings = {"log": log.name, "content": log.identity}
        return Step(f"prepared log, {log.name}", "log", work, settings)

    def artifacts(self, log: Log, letter: str, seed: int) -> Step:
        """Returns the step that fits artifacts ``a`` or ``b`` with a seed of SASRec."""
        name = f"artifacts_{letter}"
        title = f"artifacts {letter}, seed {seed}, {log.name}"
        return self._fit(log, title, name, name, seed, lambda run: getattr(run, name))

    def model(self, log: Log, row: str, seed: int) -> Step:
        """Returns the step that fits the sequential recommender of a row."""
        title = f"fit of {row}, seed {seed}, {log.name}"
        fit = functools.partial(Run.sequential_model, method=row)
        return self._fit(log, title, f"fit_{row}", f"{row}_b", seed, fit)

    def _fit(
        self,
        log: Log,
        title: str,
        kind: str,
        output: str,
        seed: int,
        fit: Callable[[Run], object],
    ) -> Step:
        """Returns a step that fits a model on the log alone, whatever the candidates are."""
        config = self._with_sasrec_seed(seed)

        def work(folder: Path, inputs: Mapping[str, Path], missing: Mapping) -> None:
            del missing
            of_log = self._config(log, inputs, config)
            fit(Run(of_log, folder, data=load_log(of_log.dataset)))
            record_provenance(folder)

        settings = self._settings(("sasrec",), config) | self._of_log(log, SPLITS)
        return Step(title, kind, work, settings, self.raw(log), outputs=(output,))

    def stage(self, log: Log, stages: Sequence[Stage], seed: int) -> Step:
        """Returns the step of the last of some stages of training; those before are its inputs."""
        *before, stage = stages
        if tuple(stages) == self.warm_start:
            seed = self.config.seed
        config = dataclasses.replace(self.config, seed=seed)
        section = getattr(config, stage.section)
        settings = self._settings((*stage.reads, stage.section), config) | {"seed": seed}
        settings |= {"use_tools": stage.use_tools, "epochs": self.epochs.get(stage.name)}
        letters = dict.fromkeys(stage.artifacts)
        if getattr(section, "validate_every", 0):
            letters |= {"b": None}
            settings["validation_examples"] = config.evaluation.validation_examples
        inputs = self._data(log) | self._artifacts_of(log, letters)
        if before:
            inputs["stage"] = self.stage(log, before, seed)

        def work(folder: Path, inputs: Mapping[str, Path], missing: Mapping) -> None:
            del missing
            start = _policy(inputs, before)
            run = Run(self._config(log, inputs, config), folder, policy_directory=start)
            if epochs := self.epochs.get(stage.name):
                steps = math.ceil(epochs * len(run.data.examples["policy"]) / section.prompts)
                passes = {stage.section: dataclasses.replace(section, steps=steps)}
                longer = dataclasses.replace(run.config, **passes)
                run = Run(longer, folder, policy_directory=start, data=run.data)
            train(run, stage.name, directory=folder, use_tools=stage.use_tools)

        outputs = tuple(f"artifacts_{letter}" for letter in letters)
        tools = "" if stage.use_tools else " without tools"
        after = f" after {', '.join(each.name for each in before)}" if before else ""
        title = f"stage {stage.name}{tools}{after}{self._noted}, seed {seed}, {log.name}"
        return Step(title, stage.kind, work, settings, inputs, outputs)

    def row(self, log: Log, method: Method, seed: int | None) -> Step:
        """Returns the step that ranks the examples by a method; ``seed`` counts if it is seeded."""
        config = self.config
        seed = seed if method.seeded else None
        if seed is not None:
            config = dataclasses.replace(config, seed=seed)
            if "sasrec" in method.reads:
                config = self._with_sasrec_seed(seed, config)
        server = self.server if method.takes_server else None
        options = method.tiny_options if self.tiny and server is None else {}
        reads = [each for each in method.reads if each != "policy" or server is None]
        settings = self._settings(reads, config) | {"seed": seed, "options": dict(options)}
        settings |= {"server": server, "examples": config.evaluation.examples}
        inputs = self._data(log) | self._artifacts_of(log, method.artifacts, config.sasrec.seed)
        if method.fits:
            inputs["model"] = self.model(log, method.row, seed)
        stages = self.stages_of(method)
        if stages:
            inputs["stage"] = self.stage(log, stages, seed)

        def work(folder: Path, inputs: Mapping[str, Path], missing: Mapping) -> None:
            del missing
            start = _policy(inputs, stages)
            run = Run(self._config(log, inputs, config), folder, policy_directory=start)
            examples = evenly_spread(run.data.examples[SPLIT], config.evaluation.examples)
            method.rank(Job(run, examples, method.row, seed, server, options))

        kind = method.together or method.row
        title = f"{kind}{self._noted}{'' if seed is None else f', seed {seed}'}, {log.name}"
        return Step(title, kind, work, settings, inputs)

    @property
    def _noted(self) -> str:
        return f", {self.note}" if self.note else ""

    def raw(self, log: Log) -> dict[str, Step]:
        """Returns the step that prepares a log, by the name that works know it by; none if none."""
        return {} if log.raw is None else {"log": self.prepared(log)}

    def _data(self, log: Log) -> dict[str, Step]:
        return self.raw(log) | {"candidates": self.candidates(log)}

    def _of_log(self, log: Log, names: Sequence[str]) -> dict[str, Any]:
        """Returns the log's content and settings of its dataset, for a hash."""
        dataset = dataclasses.replace(self.config.dataset, **log.dataset)
        settings = {name: getattr(dataset, name) for name in names}
        return {"log": log.name, "content": log.identity, **settings}

    def _artifacts_of(
        self, log: Log, letters: Sequence[str] | Mapping[str, None], seed: int | None = None
    ) -> dict[str, Step]:
        seed = self.config.sasrec.seed if seed is None else seed
        return {f"artifacts_{letter}": self.artifacts(log, letter, seed) for letter in letters}

    def _with_sasrec_seed(self, seed: int, config: RunConfig | None = None) -> RunConfig:
        config = config or self.config
        return dataclasses.replace(config, sasrec=dataclasses.replace(config.sasrec, seed=seed))

    def _config(
        self, log: Log, inputs: Mapping[str, Path], config: RunConfig | None = None
    ) -> RunConfig:
        """Returns the configuration of a step's run, which reads the log."""
        config = config or self.config
        return dataclasses.replace(config, dataset=self.dataset_of(log, inputs))

    def dataset_of(self, log: Log, inputs: Mapping[str, Path]) -> DatasetConfig:
        """Returns how a log is read, which lies in an input if it had to be prepared."""
        of_log = {"name": log.name, **log.dataset}
        if "log" in inputs:
            of_log["prepared"] = str(inputs["log"])
        return dataclasses.replace(self.config.dataset, **of_log)

    def _settings(self, sections: Sequence[str], config: RunConfig) -> dict[str, Any]:
        """Returns the sections of a configuration, with contents in the place of paths."""
        settings = {}
        for name in sections:
            value = getattr(config, name)
            settings[name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
        if "policy" in settings:
            settings["policy"] |= {"directory": self.weights}
        if "profiles" in settings and config.profiles.file:
            settings["profiles"] |= {"file": candidate_hash(resolve(config.profiles.file))}
        return settings

    def _write_table(
        self,
        folder: Path,
        inputs: Mapping[str, Path],
        reasons: Mapping[str, str],
        log: Log,
        rows: Mapping[str, Sequence[int]],
    ) -> None:
        """Writes the table with all its files, and the reasons of the rows that are missing."""
        if "candidates" in reasons:
            raise InputError(reasons["candidates"])
        for old in folder.iterdir():  # of a table that some rows were missing from
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        shutil.copyfile(inputs["candidates"] / CANDIDATES, folder / CANDIDATES)
        names = {row_file(row, seed): (row, seed) for row in rows for seed in rows[row] or [None]}
        for name, (row, _) in names.items():
            if name in inputs:
                _take_row(inputs[name], row, folder / name)
        record_provenance(folder)
        lists = [each for each in read_candidate_lists(folder / CANDIDATES) if each.split == SPLIT]
        lists = evenly_spread(lists, self.config.evaluation.examples)
        header = read_protocol(folder / CANDIDATES)
        results = write_paper_table(
            folder,
            paper=self.paper,
            log=log.name,
            protocol={
                "dataset": log.name,
                "split": SPLIT,
                "examples": len(lists),
                "negatives": header["negatives"],
                "candidate_hash": candidate_hash(folder / CANDIDATES),
                "candidate_seed": header["seed"],
                "seeds": list(self.seeds),
                "reward": self.config.reward,
            },
            targets={each.example: Target(each.target, each.user) for each in lists},
            rows=rows,
            baselines=[row for row in rows if METHODS[row].baseline],
            missing=[
                {"row": row, "seed": seed, "reason": reasons[name]}
                for name, (row, seed) in names.items()
                if name in reasons
            ],
            notes={row: METHODS[row].note for row in rows},
            caption=self._caption(rows),
        )
        write_formats(folder, results)

    def _caption(self, rows: Mapping[str, Sequence[int]]) -> list[str]:
        large = [row for row in rows if METHODS[row].large]
        if self.server is not None:
            large = [row for row in large if not METHODS[row].takes_server]
        if not (self.tiny and large):
            return []
        names = ", ".join(large)
        return [
            f"The policy is a tiny one: {names} need a large language model, and are weak here."
        ]


def _policy(inputs: Mapping[str, Path], stages: Sequence[Stage]) -> Path | None:
    """Returns the policy directory of the last stage; None without one, for the config's policy."""
    return inputs["stage"] / stages[-1].name / "policy" if stages else None


def _take_row(source: Path, row: str, path: Path) -> None:
    """Takes a row's files and the fit ranges of its artifacts into the folder of a table.

    Files are linked where the disk can: trajectories are large.
    """
    for suffix in (".json", ".parquet", ".jsonl"):
        file = source / f"evaluation_{row}_{SPLIT}{suffix}"
        if file.is_file():
            try:
                os.link(file, path.with_suffix(suffix))
            except OSError:
                shutil.copyfile(file, path.with_suffix(suffix))
    for fitted in glob(source, "*_[ab]/*.json"):
        target = path.parent / "models" / path.stem / fitted.parent.name / fitted.name
        make_directory(target.parent)
        shutil.copyfile(fitted, target)
