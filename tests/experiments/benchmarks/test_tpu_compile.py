"""The TPU benchmark: the paper's sizes, rows that remain, committed figures."""

import json
from pathlib import Path

import jax
import pytest

from agenticrec_jax.testing.errors import assert_names, refused
from experiments.benchmarks import tpu_compile
from experiments.configs import qwen3

RESULTS = Path(tpu_compile.__file__).parent / "results"


def test_a_row_has_the_papers_sizes():
    for model in tpu_compile.MODELS:
        config = tpu_compile.settings(model, "v5e:4x4", slices=2)
        assert (config.rta.prompts, config.rta.members, config.engine.max_tokens) == (64, 8, 6144)
        assert config.policy.dtype == "bfloat16" and config.mesh.fsdp * config.mesh.tensor == 16
        assert config.mesh.slices == 2 and model in config.policy.directory


def test_rows_of_other_models_remain_if_versions_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(tpu_compile.metadata, "version", lambda name: "1.2")
    path = tmp_path / "rows.json"

    def remaining():
        return tpu_compile.earlier_rows(str(path), ["Qwen3-4B"], ["v5e:4x4"], ("libtpu",))

    assert remaining() == []
    names = ["Qwen3-4B on v5e:4x4: decode", "Qwen3-8B on v5e:4x4: decode"]
    machine = {"jax": jax.__version__, "libtpu": "1.2"}
    path.write_text(json.dumps({"machine": machine, "rows": [{"name": n} for n in names]}))
    assert tpu_compile.earlier_rows(str(path), ["Qwen3-4B"], ["v5e:4x4"], ("libtpu",)) == [
        {"name": names[1]}
    ]
    monkeypatch.setattr(tpu_compile.metadata, "version", lambda name: "1.3")
    assert remaining() == []


PROGRAMS = ("prefill", "join", "decode", "splice", "gradients", "update")


@pytest.mark.parametrize(
    "file,topologies,compiler",
    [
        ("tpu_compile.json", tpu_compile.SLICES, "tpu"),
        ("gpu_compile.json", tpu_compile.GPUS, "gpu"),
    ],
)
def test_the_committed_figures_name_versions_settings_and_what_fits(file, topologies, compiler):
    """Every model on every slice as it is fitted there; rollouts gather nothing over chips."""
    committed = json.loads((RESULTS / file).read_text())
    assert all(committed["machine"][x] for x in ("jax", *tpu_compile.COMPILERS[compiler]))
    rows = {row["name"]: row for row in committed["rows"]}
    names = {preset: topology for topology, preset in topologies.items()}
    fitted = {key: value for key, value in qwen3.FITTED.items() if key[1] in names}
    assert len(rows) == len(committed["rows"]) == len(fitted) * len(PROGRAMS)
    for (size, preset), (tensor, slots, members, rank) in fitted.items():
        for program in PROGRAMS:
            row = rows[f"Qwen3-{size} on {names[preset]}: {program}"]
            settings = row["settings"]
            assert (settings["mesh"]["tensor"], settings["slots"]) == (tensor, slots), row["name"]
            assert settings["members_at_once"] == members, row["name"]
            assert settings["lora_rank"] == rank, row["name"]
            assert settings["max_tokens"] == 6144 and row["uncounted"] == {}, row["name"]
            assert row["fits"] and 0 < row["ours"] <= row["bound"], row["name"]
            assert 0 < row["seconds"] < 60, row["name"]
            assert program == "gradients" or "all-gather" not in row["collectives"], row["name"]


def test_between_two_slices_only_gradients_and_scalars_are_sent():
    """By the committed figures, in which every program fits."""
    committed = json.loads((RESULTS / "tpu_compile_slices.json").read_text())
    rows = {row["name"]: row for row in committed["rows"]}
    assert len(rows) == 2 * len(tpu_compile.MODELS) * len(PROGRAMS)
    for model in tpu_compile.MODELS:
        for topology in ("v5e:4x4", "v6e:4x4"):
            place = f"{model} on 2 x {topology}"
            of = {program: rows[f"{place}: {program}"] for program in PROGRAMS}
            assert all(row["fits"] for row in of.values()), place
            crossing = {name: row["between_slices"] for name, row in of.items()}
            assert crossing["gradients"]["all-reduce"]["bytes"] <= 512, place
            gradients = of["gradients"]["bytes"]["outputs"]
            assert 0 < crossing["update"]["all-reduce"]["bytes"] <= 1.1 * gradients, place
            assert not any(crossing[name] for name in PROGRAMS[:4]), place


def test_slices_and_gpus_are_not_compiled_together(monkeypatch):
    class Chip:
        def __init__(self, name):
            self.platform = "gpu" if name in tpu_compile.GPUS else "tpu"

    monkeypatch.setattr(tpu_compile, "slice_devices", lambda name: [Chip(name)])
    both = ["v5e:4x4", "h100:8"]
    assert_names(refused(tpu_compile.compiler_of, both), "--topology", "v5e:4x4,h100:8")
    assert tpu_compile.compiler_of(["h200:1"]) == tpu_compile.COMPILERS["gpu"]
