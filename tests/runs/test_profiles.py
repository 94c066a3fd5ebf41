"""Writing of profiles, its resumption, and how a run reads them."""

import json

import pytest

from agenticrec_jax.agent import profiles as writing
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.bundled import resolve
from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.data.examples import evenly_spread
from agenticrec_jax.models.io.huggingface import save_policy
from agenticrec_jax.runs import Run, run_config
from agenticrec_jax.runs.policy import Policy, load_policy, weights_hash
from agenticrec_jax.runs.profiles import write_run_profiles
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.tools.profiles import read_profiles, write_profiles
from tests.small_log import small_config

COUNT = 5  # examples of a split


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
    config = small_config(directory)
    config.policy.directory = save_random(directory / "policy", 1)
    config.profiles.update({"max_tokens": 8, "save_every": 2, "temperature": 1.5})
    config.engine.update({"slots": 4, "row_buckets": (4,), "window_buckets": ()})
    return config


def changed(config, **settings):
    copy = config.copy_and_resolve_references()
    copy.profiles.update(settings)
    return copy


def run_of(config, workdir, **options):
    return Run(run_config(config), workdir, **options)


def write(config, workdir, splits, count):
    """Writes profiles in a new run, as a program does; returns their file."""
    return write_run_profiles(run_of(config, workdir), splits, count)


@pytest.fixture(scope="module")
def profiles_file(config, tmp_path_factory):
    """A file of two splits, written without a pause."""
    workdir = tmp_path_factory.mktemp("run")
    return write(config, workdir, ["policy", "test"], COUNT)


def examples_of(config, path, split):
    return evenly_spread(run_of(config, path.parent).data.examples[split], COUNT)


def test_every_example_of_the_splits_has_a_profile(config, profiles_file):
    profiles = read_profiles(profiles_file)
    expected = [
        e for split in ("policy", "test") for e in examples_of(config, profiles_file, split)
    ]
    assert sorted(profiles.by_id) == sorted(e.example_id for e in expected) == list(profiles.by_id)
    for example in expected:
        assert profiles.of(example).position == example.position
    assert profiles.header["model"] == config.policy.directory
    weights = weights_hash(resolve(config.policy.directory))
    loaded = load_policy(run_config(config).policy)
    assert profiles.header["model_hash"] == weights == loaded.weights_hash
    assert all(p.text.endswith("…") for p in profiles.by_id.values() if p.finish == "token_budget")
    assert len({p.text for p in profiles.by_id.values()}) > COUNT


def test_a_killed_run_resumes_and_writes_nothing_twice(
    config, profiles_file, tmp_path, monkeypatch
):
    seen = []
    write_chunk = writing.ProfileWriter.write

    def counted(self, params, examples, known):
        profiles = write_chunk(self, params, examples, known)
        seen.append([e.example_id for e in examples])
        if len(seen) == 3:
            raise KeyboardInterrupt  # the third chunk is lost, the two before are kept
        return profiles

    monkeypatch.setattr(writing.ProfileWriter, "write", counted)
    with pytest.raises(KeyboardInterrupt):
        write(config, tmp_path, ["policy", "test"], COUNT)
    finished = read_profiles(tmp_path / "profiles.jsonl")
    assert sorted(finished.by_id) == sorted(seen[0] + seen[1])
    path = write(config, tmp_path, ["policy", "test"], COUNT)
    assert sorted(sum(seen[3:], [])) == sorted(
        set(read_profiles(profiles_file).by_id) - set(finished.by_id)
    )
    assert path.read_bytes() == profiles_file.read_bytes()
    calls = len(seen)
    write(config, tmp_path, ["test"], COUNT)
    assert len(seen) == calls and path.read_bytes() == profiles_file.read_bytes()
    write(config, tmp_path, ["valid"], 1)
    assert [len(chunk) for chunk in seen[calls:]] == [1]
    assert len(read_profiles(path).by_id) == 2 * COUNT + 1


def test_a_run_of_other_settings_is_refused(config, profiles_file):
    before = profiles_file.read_bytes()
    for settings, field, stored, given in (
        ({"words": 31}, "words", 30, 31),
        ({"max_tokens": 9}, "max_tokens", 8, 9),
        ({"temperature": 0.5}, "temperature", 1.5, 0.5),
    ):
        sentence = refused(write, changed(config, **settings), profiles_file.parent, ["test"], 1)
        assert_names(
            sentence, f"{profiles_file}, line 1, field {field}: found {stored}, expected {given}"
        )
        assert_names(sentence, "--workdir")
    assert profiles_file.read_bytes() == before


def test_the_tool_returns_the_stored_profile(config, profiles_file):
    """In the agent of every run; an example without a profile ends it before it begins."""
    policy = Policy(None, None, tiny_world().tokenizer, "")
    run = run_of(changed(config, file=str(profiles_file)), profiles_file.parent, policy=policy)
    agent, profiles = run.training_agent, read_profiles(profiles_file)
    for example in examples_of(config, profiles_file, "policy"):
        agent.prompt(Task(example))
        result = agent.toolbox.call(AsOfView(run.data.log, example), "get_user_profile", {})
        text = profiles.of(example).text
        assert result.text == "profile: " + (" ".join(text.split()) or "nothing was written")
    others = [e for e in run.data.examples["policy"] if e.example_id not in profiles.by_id]
    assert_names(refused(agent.prompt, Task(others[0])), profiles_file, others[0].example_id)


def test_without_a_file_the_tool_returns_statistics(config, profiles_file):
    run = run_of(config, profiles_file.parent)
    assert run.profiles is None
    tools = run.toolbox(run.artifacts_a)
    view = AsOfView(run.data.log, run.data.examples["policy"][0])
    assert tools.call(view, "get_user_profile", {}).text.startswith("profile from statistics: ")


def profiles_of(config, workdir):
    return run_of(config, workdir).profiles


def test_profiles_of_another_model_or_log_are_refused(config, profiles_file, tmp_path):
    profiles = read_profiles(profiles_file)
    other = save_random(tmp_path / "other", 2)
    with_file = changed(config, file=str(profiles_file))
    assert profiles_of(with_file, profiles_file.parent).by_id == profiles.by_id
    sentence = refused(profiles_of, changed(with_file, model=other), profiles_file.parent)
    stored, given = profiles.header["model_hash"], weights_hash(tmp_path / "other")
    assert_names(sentence, f"line 1, field model_hash: found {stored!r}, expected {given!r}")
    trained = changed(with_file, model=config.policy.directory)
    trained.policy.directory = other
    assert profiles_of(trained, profiles_file.parent).by_id == profiles.by_id
    write_profiles(tmp_path / "p", profiles.header | {"log": "beef"}, profiles.by_id.values())
    sentence = refused(profiles_of, changed(config, file=str(tmp_path / "p")), profiles_file.parent)
    assert_names(sentence, tmp_path / "p", "line 1, field log: found 'beef'")
    sentence = refused(
        profiles_of, changed(config, file=str(tmp_path / "no")), profiles_file.parent
    )
    assert_names(sentence, tmp_path / "no")


def test_one_of_several_processes_writes_nothing(config, tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTICREC_PROCESSES", "2")
    sentence = refused(write, config, tmp_path / "run", ["test"], 1)
    assert_names(sentence, "AGENTICREC_PROCESSES: found '2'", "expected 1 or none")
    assert not (tmp_path / "run").exists()


def test_a_chunk_has_at_least_one_example(config):
    sentence = refused(run_config, changed(config, save_every=0))
    assert_names(sentence, "config.profiles.save_every", 0, 1)


def test_the_embedded_policy_writes_profiles_of_the_embedded_log(tmp_path):
    """Greedily, of a handful; it says what it was taught: calls and thoughts."""
    config = load_config("office:smoke")
    path = write(config, tmp_path, ["valid"], 6)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["model"] == "tools_data/tiny_policy" and lines[0]["style"] == "compact"
    assert len(lines) == 7
    for line in lines[1:]:
        assert line["finish"] in ("stop", "token_budget", "called_a_tool")
        assert "<" not in line["text"] and "\n" not in line["text"]
