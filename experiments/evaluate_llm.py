"""Evaluates a language model without the agent, by a method of the papers' baselines.

    python -m experiments.evaluate_llm --method=llmrank --policy=DIR --workdir=DIR
    OPENAI_API_KEY=... python -m experiments.evaluate_llm --method=interecagent \\
        --endpoint=http://localhost:8000/v1 --model=NAME --workdir=DIR

``llmrank`` merges the model's rankings of several shuffled lists of the candidates;
``interecagent`` has it plan tools, which run in a fixed order, and rank by what they return. The
model is a policy directory, or an OpenAI-compatible endpoint (extra ``endpoint``). The others are
trained, ``train_policy --stage=METHOD``, and rank by probabilities, which only a policy directory
gives: ``tallrec`` by that of yes to each candidate, ``llara``, ``s_dpo`` and ``rere`` by those
of the candidates' titles.

The candidates are those of the run, as for every other row. A text that names no candidate is no
ranking: it counts as a miss. Completions are kept in ``completions.jsonl`` of the workdir, so the
same command continues where it was stopped. The workdir gets ``evaluation_<row>_<split>.json``, the
rankings (``.parquet``) and the answers (``.jsonl``); ``verify`` recomputes the row from them.
"""

import os
import re
from collections.abc import Sequence

from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.cli.configs import define_config
from agenticrec_jax.data.examples import RankingExample, evenly_spread
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.report import print_table
from agenticrec_jax.language.completion import Completer
from agenticrec_jax.language.endpoint import Endpoint
from agenticrec_jax.language.llmrank import PROMPTS
from agenticrec_jax.language.methods import METHODS
from agenticrec_jax.runs import Run, run_config
from agenticrec_jax.runs.language import evaluate_method, make_method, policy_completer
from agenticrec_jax.runs.stages import LANGUAGE_ROWS
from agenticrec_jax.runtime.phases import phase

_CONFIG = define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_METHOD = flags.DEFINE_enum(
    "method", None, (*METHODS, *LANGUAGE_ROWS), "Way of ranking.", required=True
)
_POLICY = flags.DEFINE_string("policy", None, "Policy directory; the config's if not given.")
_ENDPOINT = flags.DEFINE_string(
    "endpoint",
    None,
    "Address of a server in place of a policy. Its key is in the variable OPENAI_API_KEY.",
)
_MODEL = flags.DEFINE_string("model", None, "Name of the endpoint's model.")
_PARALLEL = flags.DEFINE_integer("parallel", 8, "Requests to the endpoint at once.", lower_bound=1)
_SPLIT = flags.DEFINE_enum("split", "test", ("valid", "test"), "Which examples to rank.")
_EXAMPLES = flags.DEFINE_integer("examples", 0, "How many; 0 for all.", lower_bound=0)
_NAME = flags.DEFINE_string("name", None, "Name of the row and its files; the method's by default.")
_TEMPERATURE = flags.DEFINE_float(
    "temperature", None, "0 is greedy; llmrank's default is 0.2.", lower_bound=0.0
)
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", None, "Most tokens of a completion; the method's if not given.", lower_bound=1
)
_TITLE_WORDS = flags.DEFINE_integer(
    "title_words", None, "Words of a title that a prompt shows; 20 by default.", lower_bound=1
)
_PROMPT = flags.DEFINE_enum("prompt", None, PROMPTS, "Prompt of llmrank; recency by default.")
_ROUNDS = flags.DEFINE_integer(
    "rounds", None, "Shuffled lists that llmrank merges; 3 by default.", lower_bound=1
)
_OPTIONS = (_TEMPERATURE, _MAX_TOKENS, _TITLE_WORDS, _PROMPT, _ROUNDS)


def main(argv: Sequence[str]) -> None:
    del argv
    name = _METHOD.value if _NAME.value is None else _NAME.value
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"flag --name: found {name!r}, expected letters, digits, '_', '.' or '-'")
    run = Run(run_config(_CONFIG.value), _WORKDIR.value, policy_directory=_POLICY.value)
    row = {"name": name, "split": _SPLIT.value}
    if _METHOD.value in LANGUAGE_ROWS:
        refuse((*_OPTIONS, _ENDPOINT, _MODEL), f"with --method={_METHOD.value}")
        examples = load_examples(run)
        results = LANGUAGE_ROWS[_METHOD.value](run, examples, **row)
    else:
        completer = make_completer(run)
        options = {flag.name: flag.value for flag in _OPTIONS if flag.value is not None}
        examples = load_examples(run)
        method = make_method(run, _METHOD.value, **options)
        results = evaluate_method(run, method, completer, examples, **row)
    print_table(results)


def load_examples(run: Run) -> list[RankingExample]:
    """Returns the examples to rank."""
    app.print_devices()
    with phase("data"):
        return evenly_spread(run.data.examples[_SPLIT.value], _EXAMPLES.value)


def refuse(unused: Sequence[flags.FlagHolder], when: str) -> None:
    """Raises InputError if a flag is given that would have no effect."""
    for flag in unused:
        if flag.value is not None:
            raise InputError(f"flag --{flag.name}: found {flag.value!r}, expected none {when}")


def make_completer(run: Run) -> Completer:
    """Returns what completes texts: the endpoint if there is one, else the policy."""
    if not _ENDPOINT.value:
        refuse((_MODEL,), "without --endpoint")
        return policy_completer(run)
    refuse((_POLICY,), "with --endpoint")
    return Endpoint(
        _ENDPOINT.value,
        _MODEL.value or "",
        key=os.environ.get("OPENAI_API_KEY", ""),
        seed=run.config.seed,
        parallel=_PARALLEL.value,
    )


if __name__ == "__main__":
    app.run(main)
