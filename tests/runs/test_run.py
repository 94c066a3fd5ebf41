"""A run: mesh, policy, agent and data of a configuration, and a stage without programs."""

import dataclasses
import os
import shutil
import types

import jax
import pytest
from flax import nnx

from agenticrec_jax.agent.chat import RECTHINKER
from agenticrec_jax.bundled import ROOT
from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.cli.overrides import setting_type
from agenticrec_jax.ingest.catalog import ItemColumns
from agenticrec_jax.ingest.events import EventColumns
from agenticrec_jax.ingest.prepare import Preparation, prepare_log, write_prepared
from agenticrec_jax.ingest.sources import table_log
from agenticrec_jax.models.io.huggingface import save_policy
from agenticrec_jax.models.lora import LoraConfig, lora_config
from agenticrec_jax.runs import Run, RunConfig, data, run, run_config
from agenticrec_jax.runs import pairs as run_pairs
from agenticrec_jax.runs.config import MeshConfig
from agenticrec_jax.runs.data import SPLIT_NAMES, RunData, load_data
from agenticrec_jax.runs.policy import Policy, load_policy, model_config
from agenticrec_jax.runs.policy import save_policy as save_policy_directory
from agenticrec_jax.runs.run import PATH_SETTINGS, check_paths, device_mesh
from agenticrec_jax.runtime.checkpoints import flat_settings
from agenticrec_jax.testing.chat import chat_tokenizer
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tokenizers.compact import train_tokenizer


def policy_config(**changes):
    """The policy's configuration of the Office log with changed settings."""
    config = load_config("office")
    config.policy.update(changes)
    return run_config(config).policy


def test_the_mesh_is_the_configs():
    assert device_mesh(MeshConfig()) is None
    mesh = device_mesh(MeshConfig(data=4, tensor=2))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    assert mesh.size == len(jax.devices())


def test_a_mesh_for_other_devices_is_refused():
    assert_names(refused(device_mesh, MeshConfig(data=3)), "data=3 fsdp=1 tensor=1", 3, 8)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    directory = tmp_path / "policy"
    save_policy(tiny_qwen3(vocab_size=50), directory)
    train_tokenizer(["a pen and a pad", "tape"], 400, ()).save(directory)
    sentence = refused(load_policy, policy_config(), directory)
    assert_names(sentence, f"{directory}/tokenizer.model", 50, "model.embed_tokens.weight")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "bfloat16", "scan_layers": True},
        {"param_dtype": "bfloat16", "remat": "dots", "attention": "xla"},
    ],
)
def test_how_the_policy_is_computed_is_the_configs(changes):
    config = policy_config(**changes)
    shape, policy = model_config(config), load_policy(config)
    model = nnx.merge(policy.graphdef, policy.params)
    assert model.config == shape
    today = {"dtype": "float32", "param_dtype": "float32", "scan_layers": False}
    today |= {"remat": "none", "attention": "auto"}
    assert {name: getattr(shape, name) for name in today} == today | changes
    assert model.embedding.dtype == (today | changes)["param_dtype"]


@pytest.mark.parametrize(
    ("name", "value"), [("dtype", "float8"), ("param_dtype", "int8"), ("remat", "some")]
)
def test_a_computation_that_does_not_exist_is_refused(name, value):
    sentence = refused(lambda: policy_config(**{name: value}))
    assert_names(sentence, f"config.policy.{name}", value)


def test_a_policy_that_is_not_finite_is_never_written(tmp_path):
    graphdef, params = nnx.split(tiny_qwen3(vocab_size=400))
    flat = nnx.to_flat_state(params)
    path, leaf = flat[-1]
    bad = leaf.replace(leaf[...].at[0].set(float("nan")))
    params = nnx.from_flat_state([*flat[:-1], (path, bad)])
    tokenizer = train_tokenizer(["a pen and a pad", "tape"], 400, ())
    policy = Policy(graphdef, params, tokenizer, "")
    sentence = refused(save_policy_directory, policy, tmp_path / "policy")
    assert_names(sentence, tmp_path / "policy", "finite")
    assert not (tmp_path / "policy").exists()


def test_adapters_come_from_the_config_and_only_with_a_rank(tmp_path):
    directory = tmp_path / "policy"
    save_policy(tiny_qwen3(vocab_size=400), directory)
    train_tokenizer(["a pen and a pad", "tape"], 400, ()).save(directory)
    plain = load_policy(policy_config(), directory)
    assert lora_config(nnx.merge(plain.graphdef, plain.params)) is None
    lora = {"rank": 3, "alpha": 5.0, "targets": ("v_proj", "down_proj")}
    config = policy_config(lora=lora)
    mesh = device_mesh(MeshConfig(tensor=8))
    adapted = load_policy(config, directory, mesh=mesh)
    model = nnx.merge(adapted.graphdef, adapted.params)
    assert lora_config(model) == LoraConfig(3, 5.0, ("v_proj", "down_proj"))
    a = model.layers[0].mlp.down.lora.a[...]
    assert a.sharding.shard_shape(a.shape) == (6, 3)
    sentence = refused(lambda: policy_config(lora=lora | {"targets": ("lm_head",)}))
    assert_names(sentence, "config.policy.lora", "lm_head")


@pytest.mark.parametrize(
    ("name", "value"), [("top_k", 5), ("top_p", 0.9), ("min_p", 0.1), ("constrained", True)]
)
def test_training_samples_at_a_temperature_and_has_no_other_setting(name, value):
    """The learner scores tokens under the distribution of the temperature alone."""
    config = load_config("office:smoke")
    with config.unlocked():
        config.rta.update({name: value})
    assert_names(refused(run_config, config), f"config.rta.{name}")


def test_recthinker_is_a_config(tmp_path):
    """Its tools, prompts and candidates; an agent that is not known is refused."""
    config = load_config("recthinker")
    assert (config.agent, config.dataset.negatives) == (RECTHINKER, 9)
    world = tiny_world()

    def agent_of(config, tokenizer):
        data, policy = RunData(world.log, None, {}, ""), Policy(None, None, tokenizer, "")
        return Run(run_config(config), tmp_path, data=data, policy=policy).agent(world.artifacts)

    agent = agent_of(config, chat_tokenizer())
    assert [name.split("_")[0] for name in agent.toolbox.names] == ["search"] * 5
    assert (agent.prompts.agent, agent.prompts.observation_tokens) == ("recthinker", 768)
    agent = agent_of(load_config("office"), world.tokenizer)
    assert len(agent.toolbox.names) == 7 and agent.prompts.observation_tokens == 128
    config.agent = "rec"
    assert_names(refused(run_config, config), "config.agent", "'rec'", "agenticrec", "recthinker")


def test_recthinkers_sets_leave_the_last_event_of_everybody_out(tmp_path):
    """From a log to ten candidates a user; a workdir of another split is refused."""
    rows = [
        f"u{u},i{(3 * u + n * n) % 40},{9**9 + 50 * u + n}" for u in range(30) for n in range(12)
    ]
    (tmp_path / "e.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    columns = EventColumns("user_id", "item_id", "timestamp"), ItemColumns("item_id", ("title",))
    raw = table_log(tmp_path / "e.csv", None, *columns)
    rules = {"sampling": "dense", "users": 10, "last_events": 8, "own_order": True}
    write_prepared(prepare_log(raw, Preparation(**rules)), tmp_path / "log")
    config = load_config("recthinker:movielens_dense")
    config.dataset.prepared = str(tmp_path / "log")
    data = load_data(run_config(config).dataset, tmp_path / "run")
    assert {part: len(drawn) for part, drawn in data.examples.items()} == dict.fromkeys(
        SPLIT_NAMES, 10
    )
    assert {len(e.candidates) for e in data.examples["test"]} == {10}
    for user in range(10):
        own = data.log.events_of(user)
        for part, position in zip(SPLIT_NAMES, own[-3:].tolist(), strict=True):
            assert position in [e.position for e in data.examples[part] if e.user == user]
    assert data.splits.fit_range_b.events == 10 * 6  # all but the last two of everybody
    config.dataset.split = "chronological"
    sentence = refused(load_data, run_config(config).dataset, tmp_path / "run")
    assert_names(sentence, tmp_path / "run", "policy", 10, "--workdir")
    config.dataset.prepared = str(tmp_path)
    sentence = refused(load_data, run_config(config).dataset, tmp_path / "run")
    assert_names(sentence, "interactions.parquet", "prepare_data")
    config.dataset.prepared = str(tmp_path / "log")
    config.dataset.split = "random"
    sentence = refused(run_config, config)
    assert_names(sentence, "config.dataset.split", "'random'", "chronological", "leave_one_out")


def config_at(key, value, preset="office:smoke"):
    """A configuration with one other setting, such as ``pairs.file``."""
    config = load_config(preset)
    section, _, name = key.rpartition(".")
    config[section][name] = value
    return run_config(config)


@pytest.mark.parametrize("path", ["s3://bucket/log", "gs:/bucket", "~nobody-has-this-name/log"])
@pytest.mark.parametrize("key", PATH_SETTINGS)
def test_a_path_of_another_machine_is_refused_before_anything_is_written(
    key, path, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert_names(refused(Run, config_at(key, path), "run"), f"config.{key}: ", repr(path))
    assert not list(tmp_path.iterdir())


def test_every_setting_of_text_is_a_path_or_a_name():
    """A new one has to be put into the one list or the other."""
    names = {"dataset.name", "tools.extra", "reward", "logging.project"}
    names |= {"engine.cache_dtype", "engine.weight_dtype"}
    for stage in ("rta", "ppr"):
        names |= {f"{stage}.{name}" for name in ("loss_fn", "advantage_fn")}
        names |= {f"{stage}.groups.{name}" for name in ("baseline", "scale", "aggregation")}
    settings = flat_settings(dataclasses.asdict(RunConfig()))
    assert {key for key in settings if setting_type(key) is str} == names | set(PATH_SETTINGS)
    check_paths(RunConfig())


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home directory of the test, with the Office log and a policy's shape in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("interactions.csv.gz", "items.jsonl.gz"):
        shutil.copy(ROOT / "tools_data" / "office_sample" / name, tmp_path)
    (tmp_path / "policy").mkdir()
    shutil.copy(ROOT / "tools_data" / "tiny_policy" / "config.json", tmp_path / "policy")
    return tmp_path


def test_the_home_directory_may_stand_in_every_path(home, monkeypatch):
    """Each is handed on as the path below the home directory, where its file is read."""
    paths = {}

    def reader(name):
        def read(*arguments, **_):
            paths[name] = [path for path in arguments if isinstance(path, os.PathLike)]
            raise EOFError(name)

        return read

    monkeypatch.setattr(data, "read_log", reader("log"))
    monkeypatch.setattr(data, "prepared_tables", reader("prepared"))
    monkeypatch.setattr(run, "read_profiles", reader("profiles"))
    monkeypatch.setattr(run_pairs, "read_pairs", reader("pairs"))
    config = load_config("office:smoke")
    config.dataset.interactions = "~/interactions.csv.gz"
    config.dataset["items"] = "~/items.jsonl.gz"
    config.profiles.file = "~/profiles.jsonl"
    config.pairs.file = "~/pairs.jsonl"
    opened = Run(run_config(config), "~/run", data=types.SimpleNamespace(by_id=dict.fromkeys))
    assert opened.workdir == home / "run"
    prepared = config_at("dataset.prepared", "~/log").dataset
    for read in (
        lambda: load_data(opened.config.dataset, opened.workdir),
        lambda: load_data(prepared, opened.workdir),
        lambda: opened.profiles,
        lambda: run_pairs.stage_pairs(opened, None, opened.workdir, seed=0),
    ):
        with pytest.raises(EOFError):
            read()
    assert paths == {
        "log": [home / "interactions.csv.gz", home / "items.jsonl.gz"],
        "prepared": [home / "log"],
        "profiles": [home / "profiles.jsonl"],
        "pairs": [home / "pairs.jsonl"],
    }
    assert model_config(config_at("policy.directory", "~/policy").policy).num_layers > 0
    sentence = refused(load_policy, policy_config(), "~/absent")
    assert_names(sentence, home / "absent")


def test_a_model_of_profiles_may_lie_in_the_home_directory(home, monkeypatch):
    """Its weights are compared with those that the file of profiles names."""
    config = load_config("office:smoke")
    config.profiles.update({"file": "~/profiles.jsonl", "model": "~/policy"})
    stored = types.SimpleNamespace(expect=lambda *_: None)
    monkeypatch.setattr(run, "read_profiles", lambda path: stored)
    log = types.SimpleNamespace(log=types.SimpleNamespace(fingerprint=""))
    sentence = refused(lambda: Run(run_config(config), "~/run", data=log).profiles)
    assert_names(sentence, home / "policy", "*.safetensors")
