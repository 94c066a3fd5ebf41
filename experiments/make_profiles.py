"""Writes users' long-term profiles with the policy's base model, for ``get_user_profile``.

    python -m experiments.make_profiles --config=NAME|FILE --workdir=DIR
        [--parts=policy,valid,test]

For every example of the parts the model of ``config.profiles.model``, or else the config's policy,
reads the user's own events before the example, as tools see them, and writes a text of at most
``config.profiles.max_tokens`` tokens. ``<workdir>/profiles.jsonl`` is replaced as a whole every
``config.profiles.save_every`` profiles; a run that was stopped, or is given other parts, adds what
is missing. Examples whose prompts are the same share a text. One process writes the file.
The other programs use it with ``--config.profiles.file=DIR/profiles.jsonl``.

The quality of the texts depends on the model: the embedded tiny policy knows no English sentence.
"""

from collections.abc import Sequence

from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.cli.configs import define_config
from agenticrec_jax.runs import Run, run_config
from agenticrec_jax.runs.data import SPLIT_NAMES
from agenticrec_jax.runs.profiles import write_run_profiles

_CONFIG = define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_PARTS = flags.DEFINE_list("parts", list(SPLIT_NAMES), "Examples to write profiles for.")
_EXAMPLES = flags.DEFINE_integer("examples", 0, "How many a part; 0 for all.", lower_bound=0)


def main(argv: Sequence[str]) -> None:
    del argv
    splits = app.some_of("parts", _PARTS.value, SPLIT_NAMES)
    config = run_config(_CONFIG.value)
    model = config.profiles.model or config.policy.directory
    run = Run(config, _WORKDIR.value, policy_directory=model)
    app.print_devices()
    write_run_profiles(run, splits, _EXAMPLES.value)


if __name__ == "__main__":
    app.run(main)
