"""Writing users' long-term profiles with the policy's base model."""

import os
from collections import Counter
from collections.abc import Collection, Sequence

from agenticrec_jax.agent.profiles import ProfileWriter
from agenticrec_jax.data.examples import evenly_spread
from agenticrec_jax.errors import InputError
from agenticrec_jax.parallel import multihost
from agenticrec_jax.paths import Path
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runtime.console import print_sentence
from agenticrec_jax.runtime.phases import phase
from agenticrec_jax.runtime.progress import Progress
from agenticrec_jax.tools.profiles import Profile, read_profiles, write_profiles

FILE = "profiles.jsonl"


def write_run_profiles(run: Run, splits: Sequence[str], count: int = 0) -> Path:
    """Writes the profiles of ``count`` examples of each split, 0 for all; returns their file.

    Profiles that an earlier call wrote with the same settings are kept; the file is replaced as a
    whole every ``config.profiles.save_every`` profiles.

    Args:
      run: whose policy is the model that writes (``config.profiles.model``).
      splits: of ``policy``, ``valid`` and ``test``.
      count: examples of each, evenly spread over time.

    Raises:
      InputError: this is one of several processes, or the file is of other settings.
    """
    processes = os.environ.get(multihost.PROCESSES, "1")
    if processes != "1":
        raise InputError(
            f"environment variable {multihost.PROCESSES}: found {processes!r}, expected 1 or none, "
            "since profiles are written by one process"
        )
    settings = run.config.profiles
    with phase("model and data"):
        policy = run.policy
        data = run.data
    examples = [e for split in splits for e in evenly_spread(data.examples[split], count)]
    path = run.workdir / FILE
    header = _header(run)
    profiles = _read_finished(path, header)
    missing = [example for example in examples if example.example_id not in profiles]
    writer = ProfileWriter(
        data.log,
        run.prompts(policy.tokenizer),
        run.make_engine(max_tokens=settings.max_tokens),
        settings.events,
        settings.words,
        settings.temperature,
        run.config.seed,
    )
    with phase("profiles"), Progress("profiles", len(examples), unit="profiles") as progress:
        progress.advance(len(examples) - len(missing))
        for first in range(0, len(missing), settings.save_every):
            chunk = missing[first : first + settings.save_every]
            written = writer.write(policy.params, chunk, profiles.values())
            profiles |= {profile.example_id: profile for profile in written}
            write_profiles(path, header, profiles.values())
            progress.advance(len(chunk), _speed(writer.engine.telemetry))
    print_sentence(
        f"{len(missing)} profiles written to {path}, which has {_ends(profiles.values())}"
    )
    return path


def _header(run: Run) -> dict:
    """Returns the facts that a text depends on: the model, the log, the prompts, the sampling."""
    config = run.config
    settings = config.profiles
    return {
        "model": str(run.policy_directory),
        "model_hash": run.policy.weights_hash,
        "log": run.data.log.fingerprint,
        "style": run.policy.tokenizer.prompt_style,
        "title_tokens": config.policy.title_tokens,
        "prompt_tokens": config.engine.prompt_buckets[-1],
        "events": settings.events,
        "words": settings.words,
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "seed": config.seed if settings.temperature else 0,  # greedy texts depend on no seed
    }


def _read_finished(path: Path, header: dict) -> dict[int, Profile]:
    if not path.exists():
        return {}
    profiles = read_profiles(path)
    expected = {name: value for name, value in header.items() if name != "model"}
    profiles.expect(expected, "as in this run; name another --workdir")
    return profiles.by_id


def _speed(telemetry: dict[str, float]) -> str:
    if not telemetry:
        return ""
    return f"{telemetry['sampled_tokens'] / telemetry['seconds']:.0f} tokens/s"


def _ends(profiles: Collection[Profile]) -> str:
    """Returns the number of profiles, and of each reason why the model ended."""
    counts = sorted(Counter(profile.finish for profile in profiles).items())
    return f"{len(profiles)}: " + ", ".join(f"{count} {finish}" for finish, count in counts)
