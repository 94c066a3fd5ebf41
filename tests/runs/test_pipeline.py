import types

import jax
import pytest
from flax import nnx

from agenticrec_jax.errors import InputError
from agenticrec_jax.ingest.catalog import ItemColumns
from agenticrec_jax.ingest.events import EventColumns
from agenticrec_jax.ingest.prepare import Preparation, prepare_log, write_prepared
from agenticrec_jax.ingest.sources import table_log
from agenticrec_jax.models.io.huggingface import save_policy
from agenticrec_jax.models.lora import LoraConfig, lora_config
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.runs import pipeline
from agenticrec_jax.runs import policy as policies
from agenticrec_jax.testing.chat import chat_tokenizer
from agenticrec_jax.testing.errors import refused
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tokenizers.compact import train_tokenizer
from experiments import train_policy
from experiments.configs import office, recthinker


def with_mesh(**sizes):
    config = office.get_config("smoke")
    config.mesh.update(sizes)
    return config


def test_the_mesh_is_the_configs():
    assert pipeline.device_mesh(with_mesh()) is None
    mesh = pipeline.device_mesh(with_mesh(data=4, tensor=2))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    assert mesh.size == len(jax.devices())


def test_a_mesh_for_other_devices_is_refused():
    with pytest.raises(InputError, match="data=3 fsdp=1 tensor=1 takes 3 devices; found 8"):
        pipeline.device_mesh(with_mesh(data=3))


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    directory = tmp_path / "policy"
    save_policy(tiny_qwen3(vocab_size=50), directory)
    train_tokenizer(["a pen and a pad", "tape"], 400, ()).save(directory)
    with pytest.raises(InputError) as error:
        policies.load(str(directory))
    for word in (f"{directory}/tokenizer.model", "50 rows", "tensor model.embed_tokens.weight"):
        assert word in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "bfloat16", "scan_layers": True},
        {"param_dtype": "bfloat16", "remat": "dots", "attention": "xla"},
    ],
)
def test_how_the_policy_is_computed_is_the_configs(changes):
    config = office.get_config()
    config.policy.update(changes)
    shape = policies.policy_config(config, config.policy.directory)
    policy = policies.load(config.policy.directory, **policies.computed(config))
    model = nnx.merge(policy.graphdef, policy.params)
    assert model.config == shape
    today = {"dtype": "float32", "param_dtype": "float32", "scan_layers": False}
    today |= {"remat": "none", "attention": "auto"}
    assert {name: getattr(shape, name) for name in today} == today | changes
    assert model.embedding.dtype == (today | changes)["param_dtype"]


def test_a_way_to_compute_that_is_not_there_is_refused():
    config = office.get_config()
    for name, value in (("dtype", "float8"), ("param_dtype", "int8"), ("remat", "some")):
        config.policy.update({**office.get_config().policy.to_dict(), name: value})
        with pytest.raises(InputError, match=f"{name} is {value}; expected one of"):
            policies.policy_config(config, config.policy.directory)


def test_adapters_come_from_the_config_and_only_with_a_rank():
    config = office.get_config("smoke")
    policy = policies.Policy(*nnx.split(tiny_qwen3()), None, "")
    assert policies.with_adapters(policy, config) is policy
    config.policy.lora.update({"rank": 3, "alpha": 5.0, "targets": ("v_proj", "down_proj")})
    mesh = make_mesh(tensor=8)
    adapted = policies.with_adapters(policy, config, mesh)
    model = nnx.merge(adapted.graphdef, adapted.params)
    assert lora_config(model) == LoraConfig(3, 5.0, ("v_proj", "down_proj"))
    a = model.layers[0].mlp.down.lora.a[...]
    assert a.sharding.shard_shape(a.shape) == (6, 3)
    config.policy.lora.targets = ("lm_head",)
    with pytest.raises(InputError, match="lm_head"):
        policies.with_adapters(policy, config)


@pytest.mark.parametrize(
    "name, value", [("top_k", 5), ("top_p", 0.9), ("min_p", 0.1), ("constrained", True)]
)
def test_training_samples_at_a_temperature_and_refuses_the_rest(name, value):
    """A config file may set what it likes: neither the sampler nor the learner takes it."""
    config = office.get_config("smoke")
    config.rta.temperature = 0.7
    assert pipeline.temperature(config.rta) == 0.7
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "constrained": False}
    config.rta.update(off)
    assert pipeline.temperature(config.rta) == 0.7
    config.rta.update({name: value})
    says = f"found {name} {value}, expected it off, since the learner scores"
    with pytest.raises(InputError, match=says):
        pipeline.update(config, config.rta, None, None)
    with pytest.raises(InputError, match=says):
        train_policy.train_rta(*stage_of(config), None, 0)


def stage_of(config):
    """A world, agent, engine and policy of nothing: the refusal comes before they are used."""
    world = types.SimpleNamespace(config=config, examples={"policy": [0]}, candidate_hash="")
    policy = types.SimpleNamespace(graphdef=None)
    return world, None, None, policy


def test_recthinker_is_a_config(tmp_path):
    """Its tools, prompts and candidates; an agent that is not known is refused."""
    config = recthinker.get_config()
    assert (config.agent, config.dataset.negatives) == ("recthinker", 9)
    world = tiny_world()
    made = pipeline.World(config, tmp_path, world.log, None, {}, "")
    agent = pipeline.agent(made, world.artifacts, chat_tokenizer())
    assert [name.split("_")[0] for name in agent.toolbox.names] == ["search"] * 5
    assert (agent.prompts.agent, agent.prompts.observation_tokens) == ("recthinker", 768)
    office_world = pipeline.World(office.get_config(), tmp_path, world.log, None, {}, "")
    agent = pipeline.agent(office_world, world.artifacts, world.tokenizer)
    assert len(agent.toolbox.names) == 7 and agent.prompts.observation_tokens == 128
    config.agent = "rec"
    said = refused(pipeline.agent, made, world.artifacts, chat_tokenizer())
    assert said == "config.agent: found 'rec', expected one of agenticrec, recthinker"


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
    config = recthinker.get_config("movielens_dense")
    config.dataset.prepared = str(tmp_path / "log")
    world = pipeline.prepare(config, tmp_path / "run")
    assert {part: len(drawn) for part, drawn in world.examples.items()} == dict.fromkeys(
        pipeline.PARTS, 10
    )
    assert {len(e.candidates) for e in world.examples["test"]} == {10}
    for user in range(10):
        own = world.log.events_of(user)
        for part, position in zip(pipeline.PARTS, own[-3:].tolist(), strict=True):
            assert position in [e.position for e in world.examples[part] if e.user == user]
    assert world.splits.fit_range_b.events == 10 * 6  # all but the last two of everybody
    config.dataset.split = "chronological"
    said = refused(pipeline.prepare, config, tmp_path / "run")
    assert "found candidates of other policy samples (10), expected those of the config's" in said
    config.dataset.prepared = str(tmp_path)
    said = refused(pipeline.prepare, config, tmp_path / "run")
    assert said.endswith(
        "interactions.parquet: no such file, expected a log that prepare_data wrote"
    )
    config.dataset.prepared = str(tmp_path / "log")
    config.dataset.split = "random"
    said = refused(pipeline.prepare, config, tmp_path / "run")
    assert said == (
        "config.dataset.split: found 'random', expected one of chronological, leave_one_out"
    )
