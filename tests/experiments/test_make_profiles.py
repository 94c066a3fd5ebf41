"""The program that writes profiles, what it goes on from, and how the other programs read them."""

import json

import pytest

from agenticrec_jax.agent import profiles as writing
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.bundled import resolve
from agenticrec_jax.data.export import write_log
from agenticrec_jax.models.io.huggingface import save_policy
from agenticrec_jax.runs import pipeline
from agenticrec_jax.runs import policy as policies
from agenticrec_jax.testing.errors import refused
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.tools.profiles import read_profiles, write_profiles
from experiments import make_profiles
from experiments.configs import office

COUNT = 5  # examples of a part


def save_random(directory, seed):
    """A random policy of one layer with the compact tokenizer of the tiny world."""
    tokenizer = tiny_world().tokenizer
    save_policy(tiny_qwen3(seed, num_layers=1, vocab_size=tokenizer.vocab_size), directory)
    tokenizer.save(directory)
    return str(directory)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The smoke preset on a small log, with a random policy and short texts."""
    directory = tmp_path_factory.mktemp("given")
    log = synthetic_log(SyntheticConfig(users=40, items=40, brands=5), seed=2)
    interactions, items = write_log(log, directory / "log")
    config = office.get_config("smoke")
    config.dataset.update({"interactions": str(interactions), "items": str(items)})
    config.policy.directory = save_random(directory / "policy", 1)
    config.profiles.update({"max_tokens": 8, "save_every": 2, "temperature": 1.5})
    config.engine.update({"slots": 4, "row_buckets": (4,), "window_buckets": ()})
    return config


def changed(config, **settings):
    copy = config.copy_and_resolve_references()
    copy.profiles.update(settings)
    return copy


@pytest.fixture(scope="module")
def made(config, tmp_path_factory):
    """A file of two parts, written without a pause."""
    workdir = tmp_path_factory.mktemp("run")
    return make_profiles.run(config, workdir, ["policy", "test"], COUNT)


def asked(config, path, part):
    world = pipeline.prepare(config, path.parent)
    return pipeline.chosen(world.examples[part], COUNT)


def test_every_example_of_the_parts_has_a_profile(config, made):
    found = read_profiles(made)
    expected = [e for part in ("policy", "test") for e in asked(config, made, part)]
    assert sorted(found.by_id) == sorted(e.example_id for e in expected) == list(found.by_id)
    for example in expected:
        assert found.of(example).position == example.position
    assert found.header["model"] == config.policy.directory
    weights = policies.weights_hash(resolve(config.policy.directory))
    assert (
        found.header["model_hash"] == weights == policies.load(config.policy.directory).weights_hash
    )
    assert all(p.text.endswith("…") for p in found.by_id.values() if p.finish == "token_budget")
    assert len({p.text for p in found.by_id.values()}) > COUNT


def test_a_killed_run_goes_on_and_writes_nothing_twice(config, made, tmp_path, monkeypatch):
    seen = []
    write = writing.ProfileWriter.write

    def counted(self, params, examples, known):
        profiles = write(self, params, examples, known)
        seen.append([e.example_id for e in examples])
        if len(seen) == 3:
            raise KeyboardInterrupt  # the third chunk is lost, the two before are kept
        return profiles

    monkeypatch.setattr(writing.ProfileWriter, "write", counted)
    with pytest.raises(KeyboardInterrupt):
        make_profiles.run(config, tmp_path, ["policy", "test"], COUNT)
    kept = read_profiles(tmp_path / "profiles.jsonl")
    assert sorted(kept.by_id) == sorted(seen[0] + seen[1])
    path = make_profiles.run(config, tmp_path, ["policy", "test"], COUNT)
    assert sorted(sum(seen[3:], [])) == sorted(set(read_profiles(made).by_id) - set(kept.by_id))
    assert path.read_bytes() == made.read_bytes()
    calls = len(seen)
    make_profiles.run(config, tmp_path, ["test"], COUNT)
    assert len(seen) == calls and path.read_bytes() == made.read_bytes()
    make_profiles.run(config, tmp_path, ["valid"], 1)
    assert [len(chunk) for chunk in seen[calls:]] == [1]
    assert len(read_profiles(path).by_id) == 2 * COUNT + 1


def test_a_run_of_other_settings_is_refused(config, made):
    before = made.read_bytes()
    for settings, said in (
        ({"words": 31}, "field words: found 30, expected 31, as in this run; name another"),
        ({"max_tokens": 9}, "field max_tokens: found 8, expected 9"),
        ({"temperature": 0.5}, "field temperature: found 1.5, expected 0.5"),
    ):
        run = refused(make_profiles.run, changed(config, **settings), made.parent, ["test"], 1)
        assert f"{made}, line 1, {said}" in run
    assert made.read_bytes() == before


def test_the_tool_tells_the_stored_profile(config, made):
    """In the agent that every program makes; an example without one ends it before it begins."""
    world = pipeline.prepare(changed(config, file=str(made)), made.parent)
    agent = pipeline.agent(world, pipeline.artifacts_a(world), tiny_world().tokenizer)
    found = read_profiles(made)
    for example in asked(config, made, "policy"):
        agent.prompt(Task(example))
        told = agent.toolbox.call(AsOfView(world.log, example), "get_user_profile", {})
        text = found.of(example).text
        assert told.text == "profile: " + (" ".join(text.split()) or "nothing was written")
    others = [e for e in world.examples["policy"] if e.example_id not in found.by_id]
    said = refused(agent.prompt, Task(others[0]))
    assert f"{made}: found no profile of example {others[0].example_id}" in said


def test_without_a_file_the_tool_tells_statistics(config, made):
    world = pipeline.prepare(config, made.parent)
    assert world.profiles is None
    tools = pipeline.toolbox(config, pipeline.artifacts_a(world), world.log.items)
    view = AsOfView(world.log, world.examples["policy"][0])
    assert tools.call(view, "get_user_profile", {}).text.startswith("profile from statistics: ")


def profiles_of(config, workdir):
    return pipeline.prepare(config, workdir).profiles


def test_profiles_of_another_model_or_log_are_refused(config, made, tmp_path):
    found = read_profiles(made)
    other = save_random(tmp_path / "other", 2)
    with_file = changed(config, file=str(made))
    assert profiles_of(with_file, made.parent).by_id == found.by_id
    said = refused(profiles_of, changed(with_file, model=other), made.parent)
    hashes = found.header["model_hash"], policies.weights_hash(tmp_path / "other")
    assert "line 1, field model_hash: found '{}', expected '{}'".format(*hashes) in said
    trained = changed(with_file, model=config.policy.directory)
    trained.policy.directory = other
    assert profiles_of(trained, made.parent).by_id == found.by_id
    write_profiles(tmp_path / "p", found.header | {"log": "beef"}, found.by_id.values())
    said = refused(profiles_of, changed(config, file=str(tmp_path / "p")), made.parent)
    assert "line 1, field log: found 'beef'" in said
    said = refused(profiles_of, changed(config, file=str(tmp_path / "no")), made.parent)
    assert "no: no such file" in said


def test_one_of_several_processes_writes_nothing(config, tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTICREC_PROCESSES", "2")
    said = refused(make_profiles.run, config, tmp_path / "run", ["test"], 1)
    assert "AGENTICREC_PROCESSES: found '2', expected 1 or none" in said
    assert not (tmp_path / "run").exists()


def test_a_chunk_has_at_least_one_example(config, tmp_path):
    said = refused(make_profiles.in_chunks, [1], 0)
    assert "config.profiles.save_every: found 0" in said


def test_the_embedded_policy_writes_profiles_of_the_embedded_log(tmp_path):
    """Greedily, of a handful; what it says is what it was taught: calls and thoughts."""
    config = office.get_config("smoke")
    path = make_profiles.run(config, tmp_path, ["valid"], 6)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["model"] == "tools_data/tiny_policy" and lines[0]["style"] == "compact"
    assert len(lines) == 7
    for line in lines[1:]:
        assert line["finish"] in ("stop", "token_budget", "called_a_tool")
        assert "<" not in line["text"] and "\n" not in line["text"]
