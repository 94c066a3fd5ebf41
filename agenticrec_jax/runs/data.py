"""Data of a run: the log, its splits, the frozen candidates and the fitted artifacts."""

import dataclasses
import json
import os
from collections.abc import Callable

from agenticrec_jax import strict_json
from agenticrec_jax.bundled import resolve
from agenticrec_jax.data.candidates import (
    candidate_hash,
    draw_split_candidates,
    read_candidates,
    read_protocol,
    write_candidates,
)
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog, read_log
from agenticrec_jax.data.prepared import prepared_tables
from agenticrec_jax.data.splits import (
    FitRange,
    Splits,
    chronological_splits,
    leave_one_out,
    prediction_samples,
)
from agenticrec_jax.errors import InputError
from agenticrec_jax.parallel.multihost import main_writes
from agenticrec_jax.paths import Path, as_path, make_directory
from agenticrec_jax.runs.config import DatasetConfig, SasrecSettings
from agenticrec_jax.runtime.checkpoints import flat_settings
from agenticrec_jax.runtime.progress import Progress
from agenticrec_jax.runtime.provenance import record_provenance
from agenticrec_jax.sequential.fit import train_model
from agenticrec_jax.sequential.methods import METHODS, make_model
from agenticrec_jax.sequential.model import SequentialModel
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.sequential.saving import load_model, save_model
from agenticrec_jax.sequential.training import OnEpoch, SequentialTraining
from agenticrec_jax.tools.artifacts import Artifacts, Fitted, fit_artifacts

SPLIT_NAMES = ("policy", "valid", "test")
_SPLITS = {"chronological": chronological_splits, "leave_one_out": leave_one_out}


@dataclasses.dataclass(frozen=True)
class RunData:
    """The log, its splits, and the ranking examples of each split.

    Attributes:
      log: validated interactions and items.
      splits: time ranges and samples of ``policy``, ``valid`` and ``test``.
      examples: ranking examples by split, in time order, with frozen candidates.
      candidate_hash: digest of the candidates file; equal digests rank the same lists.
    """

    log: InteractionLog
    splits: Splits
    examples: dict[str, list[RankingExample]]
    candidate_hash: str

    def by_id(self, split: str) -> dict[int, RankingExample]:
        """Returns the examples of a split by their id."""
        return {example.example_id: example for example in self.examples[split]}


def workdir_path(path: str | os.PathLike | None) -> Path:
    """Returns the path of the run's directory, which need not be there.

    Raises:
      InputError: the path is empty, or none of `paths.as_path`.
    """
    if not path:  # Path("") would be the current directory
        raise InputError("flag --workdir: found nothing, expected a directory for the run's files")
    return as_path(path, "flag --workdir")


def make_workdir(path: str | os.PathLike | None) -> Path:
    """Makes the run's directory; returns its path.

    Raises:
      InputError: no directory can be made there.
    """
    return make_directory(workdir_path(path), "flag --workdir")


def load_log(config: DatasetConfig) -> RunData:
    """Reads the log and splits it, which is all that models are fitted on; without examples.

    Raises:
      InputError: a table is bad.
    """
    interactions = resolve(config.interactions)
    items = resolve(config.items)
    if config.prepared:
        interactions, items = prepared_tables(resolve(config.prepared))
    log = read_log(interactions, items)
    splits = _SPLITS[config.split](prediction_samples(log, config.max_history))
    return RunData(log=log, splits=splits, examples={}, candidate_hash="")


def load_data(config: DatasetConfig, workdir: str | os.PathLike) -> RunData:
    """Reads the log; draws the candidates and freezes them in ``workdir``, or reads them there.

    The directory is made only after the log was read and the candidates were drawn. It gets a line
    of provenance, too.

    Raises:
      InputError: a table is bad, or the workdir holds candidates of other settings.
    """
    split_log = load_log(config)
    log, splits = split_log.log, split_log.splits
    path = Path(workdir) / "candidates.jsonl.gz"
    with main_writes("candidates") as writes:
        if writes and not path.exists():
            drawn = draw_split_candidates(log, splits, config.negatives, seed=config.candidate_seed)
            make_workdir(workdir)
            write_candidates(path, log, drawn, seed=config.candidate_seed)
    frozen = read_candidates(path, log)
    _check_protocol(path, config)
    examples = {name: [e for e in frozen if e.split == name] for name in SPLIT_NAMES}
    _check_examples(path, splits, examples)
    record_provenance(workdir)
    return dataclasses.replace(split_log, examples=examples, candidate_hash=candidate_hash(path))


def _check_protocol(path: Path, config: DatasetConfig) -> None:
    stored = read_protocol(path)
    for name, expected in (("seed", config.candidate_seed), ("negatives", config.negatives)):
        if stored[name] != expected:
            raise InputError(
                f"{path}: found candidates drawn with {name} {stored[name]}, expected {expected}; "
                "name another --workdir"
            )


def _check_examples(path: Path, splits: Splits, examples: dict[str, list[RankingExample]]) -> None:
    for name, drawn in examples.items():
        samples = getattr(splits, name)
        if [e.position for e in drawn] != [s.position for s in samples]:
            raise InputError(
                f"{path}: found candidates of other {name} samples ({len(drawn)}), expected those "
                f"of the config's split ({len(samples)}); name another --workdir"
            )


def load_artifacts(
    data: RunData, settings: SasrecSettings, max_history: int, directory: Path, fit_range: FitRange
) -> Artifacts:
    """Reads the artifacts of ``fit_range`` from ``directory``, after fitting them if need be.

    Artifacts that were fitted on another log or with other settings are fitted again. The main
    process fits; the others wait for it.

    Args:
      data: of the run.
      settings: of SASRec.
      max_history: newest events of a user that SASRec reads.
      directory: such as ``<workdir>/artifacts_a``.
      fit_range: events to fit on.
    """
    training = SequentialTraining(epochs=settings.epochs, seed=settings.seed)
    model = SasrecConfig(items=data.log.num_items, **_sasrec_sizes(settings, max_history))

    def fit(on_epoch: OnEpoch) -> None:
        fitted = fit_artifacts(
            data.log, fit_range, config=model, training=training, on_epoch=on_epoch
        )
        fitted.save(directory, data.log)

    record = {"log": data.log.fingerprint, "sasrec": dataclasses.asdict(settings)}
    _fit_once(directory, record | {"format": Artifacts.FORMAT}, settings.epochs, fit)
    return Artifacts.load(directory, data.log)


def load_sequential(
    data: RunData,
    method: str,
    settings: SasrecSettings,
    max_history: int,
    directory: Path,
    fit_range: FitRange,
) -> Fitted[SequentialModel]:
    """Reads a sequential model of ``fit_range`` from ``directory``, after fitting it if need be.

    It has the loss of its method, the epochs, seed, width and longest history of the run's SASRec,
    and all its sizes if it is a kind of SASRec; else the defaults of its method. One that was
    fitted on another log or with other settings is fitted again.

    Args:
      data: of the run.
      method: name in `sequential.methods.METHODS`.
      settings: of the run's SASRec.
      max_history: newest events of a user that a model of histories reads.
      directory: such as ``<workdir>/gru4rec_b``.
      fit_range: events to fit on.
    """
    log = data.log
    model_type, objective = METHODS[method]
    sizes = _sasrec_sizes(settings, max_history)
    if not issubclass(model_type, Sasrec):
        known = {field.name for field in dataclasses.fields(model_type.config_type)}
        sizes = {name: sizes[name] for name in ("max_length", "width") if name in known}

    def fit(on_epoch: OnEpoch) -> None:
        training = SequentialTraining(
            epochs=settings.epochs, seed=settings.seed, objective=objective
        )
        model = make_model(method, log, seed=settings.seed, **sizes)
        model = train_model(model, log, fit_range, training=training, on_epoch=on_epoch)
        save_model(directory, model, log.items.item_id, fit_range)

    record = {"log": log.fingerprint, "method": method, "sasrec": dataclasses.asdict(settings)}
    record |= {"sizes": sizes, "fit_range": dataclasses.asdict(fit_range)}
    _fit_once(directory, record, settings.epochs, fit)
    saved = load_model(directory, model_type, log.items.item_id)
    return Fitted(saved.model, saved.fit_range, method)


def _sasrec_sizes(settings: SasrecSettings, max_history: int) -> dict[str, int | float]:
    return {
        "max_length": max_history,
        "width": settings.dim,
        "blocks": settings.blocks,
        "heads": settings.heads,
        "dropout": settings.dropout,
    }


def _fit_once(directory: Path, record: dict, epochs: int, fit: Callable[[OnEpoch], None]) -> None:
    """Calls ``fit``, which writes to a directory, unless that was done with the same record."""
    stamp = directory / "made.json"
    stamped = strict_json.dumps(record)
    with main_writes(directory.name) as writes:
        if writes and not (stamp.exists() and stamp.read_text() == stamped):
            with Progress(directory.name, epochs, unit="epochs") as progress:
                fit(lambda epoch, loss, model: progress.advance(note=f"loss {loss:.3f}"))
            stamp.write_text(stamped)


def store_settings(workdir: Path, settings: dict) -> None:
    """Writes a run's settings to ``settings.json``, or compares them with those stored there.

    Raises:
      InputError: names the first setting in which the directory's run differs from this one.
    """
    path = workdir / "settings.json"
    given = json.loads(strict_json.dumps(settings))
    if not path.exists():
        path.write_text(strict_json.dumps(given, indent=1) + "\n")
    stored, given = flat_settings(json.loads(path.read_text())), flat_settings(given)
    for name in sorted(stored.keys() | given.keys()):
        if stored.get(name) != given.get(name):
            raise InputError(
                f"{path}: found {name}={stored.get(name)!r}, expected {given.get(name)!r} as in "
                "this run; name another --workdir"
            )
