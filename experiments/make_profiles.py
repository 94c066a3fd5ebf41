"""Writes users' long-term profiles with the policy's base model, for ``get_user_profile``.

    python -m experiments.make_profiles --config=FILE.py --workdir=DIR [--parts=policy,valid,test]

For every example of the parts the model of ``config.profiles.model``, or else the config's policy,
reads the user's own events before the example, as tools see them, and writes a text of at most
``config.profiles.max_tokens`` tokens. ``<workdir>/profiles.jsonl`` is replaced as a whole every
``config.profiles.save_every`` profiles; a run that was stopped, or is given other parts, adds what
is missing. Examples whose prompts are the same share a text. One process writes the file.
The other programs use it with ``--config.profiles.file=DIR/profiles.jsonl``.

How good the texts are is the model's doing: the embedded tiny policy knows no English sentence.
"""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from agenticrec_jax.agent.profiles import ProfileWriter
from agenticrec_jax.cli import app
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.errors import InputError
from agenticrec_jax.parallel import multihost
from agenticrec_jax.runs import pipeline
from agenticrec_jax.runs import policy as policies
from agenticrec_jax.runtime.phases import phase
from agenticrec_jax.runtime.progress import Progress
from agenticrec_jax.tools.profiles import Profile, read_profiles, write_profiles

FILE = "profiles.jsonl"
TEXTS = ("events", "words", "max_tokens", "temperature")  # settings that a text depends on


def main(argv: Sequence[str]) -> None:
    del argv
    parts = app.some_of("parts", _PARTS.value, pipeline.PARTS)
    run(_CONFIG.value, _WORKDIR.value, parts, _EXAMPLES.value)


def run(config: ConfigDict, workdir: str | Path, parts: Sequence[str], count: int = 0) -> Path:
    """Writes the profiles of ``count`` examples of each part, 0 for all; returns their file."""
    check_alone()
    directory = policies.profile_model(config)
    with phase("model and data"):
        policy = policies.load(directory, **policies.computed(config))
        world = pipeline.prepare(config, workdir)
    examples = [e for part in parts for e in pipeline.chosen(world.examples[part], count)]
    path = world.workdir / FILE
    header = {"model": directory, "model_hash": policy.weights_hash}
    header |= settings_of(world, policy)
    profiles = finished(path, header)
    waiting = [example for example in examples if example.example_id not in profiles]
    with phase("profiles"), Progress("profiles", len(examples), unit="profiles") as progress:
        progress.advance(len(examples) - len(waiting))
        writer = make_writer(world, policy)
        for chunk in in_chunks(waiting, config.profiles.save_every):
            made = writer.write(policy.params, chunk, profiles.values())
            profiles |= {profile.example_id: profile for profile in made}
            write_profiles(path, header, profiles.values())
            progress.advance(len(chunk), speed(writer.engine.telemetry))
    print(f"{len(waiting)} profiles written to {path}, which has {ends(profiles.values())}")
    return path


def check_alone() -> None:
    """Raises InputError if this is one of several processes: all would write one file."""
    found = os.environ.get(multihost.PROCESSES, "1")
    if found != "1":
        raise InputError(
            f"environment variable {multihost.PROCESSES}: found {found!r}, expected 1 or none, "
            "since profiles are written by one process"
        )


def settings_of(world: pipeline.World, policy: policies.Policy) -> dict:
    """What a text depends on beside the model: the log, the prompts and how it is sampled."""
    config = world.config
    texts = {name: config.profiles[name] for name in TEXTS}
    seed = config.seed if config.profiles.temperature else 0  # of nothing if greedy
    longest = config.engine.prompt_buckets[-1]
    prompts = {"style": policy.tokenizer.prompt_style, "title_tokens": config.policy.title_tokens}
    return {
        "log": world.log.fingerprint,
        **prompts,
        "prompt_tokens": longest,
        **texts,
        "seed": seed,
    }


def finished(path: Path, header: dict) -> dict[int, Profile]:
    """The profiles that an earlier run wrote, by example.

    Raises:
      InputError: if it made them otherwise, or the file is none.
    """
    if not path.exists():
        return {}
    found = read_profiles(path)
    made = {name: value for name, value in header.items() if name != "model"}
    found.expect(made, "as in this run; name another --workdir")
    return found.by_id


def make_writer(world: pipeline.World, policy: policies.Policy) -> ProfileWriter:
    """The writer of ``world``'s profiles; its engine has room for a text, not for an episode."""
    config = world.config.copy_and_resolve_references()
    config.engine.max_tokens = config.profiles.max_tokens
    settings = config.profiles
    return ProfileWriter(
        world.log,
        pipeline.prompts(world, policy.tokenizer),
        pipeline.engine(config, policy),
        settings.events,
        settings.words,
        settings.temperature,
        config.seed,
    )


def in_chunks(examples: Sequence[RankingExample], size: int) -> list[Sequence[RankingExample]]:
    """The examples in runs of ``size``, the last one shorter."""
    if size < 1:
        raise InputError(f"config.profiles.save_every: found {size}, expected at least 1")
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def speed(telemetry: dict[str, float]) -> str:
    """Tokens a second of the engine's last call, in a chunk that had any; nothing before it."""
    if not telemetry:
        return ""
    return f"{telemetry['sampled_tokens'] / telemetry['seconds']:.0f} tokens/s"


def ends(profiles: Collection[Profile]) -> str:
    """How many there are, by the reason why the model ended."""
    counts = sorted(Counter(profile.finish for profile in profiles).items())
    return f"{len(profiles)}: " + ", ".join(f"{count} {finish}" for finish, count in counts)


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    _PARTS = flags.DEFINE_list("parts", list(pipeline.PARTS), "Samples to write profiles for.")
    _EXAMPLES = flags.DEFINE_integer("examples", 0, "How many a part; 0 for all.", lower_bound=0)
    _CONFIG = pipeline.define_config("experiments/configs/office.py")
    app.run(main)
