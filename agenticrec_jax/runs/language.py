"""Rows of language models without the agent: LLMRank and InteRecAgent, by any completer.

What the trained rows have in common (`runs.tallrec`, `runs.titles`, `runs.llara`) is here too.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Float

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.rankings import number_rankings
from agenticrec_jax.language.answers import Answer, ranked_answer
from agenticrec_jax.language.completion import Completer, Decoding
from agenticrec_jax.language.interecagent import InteRecAgent
from agenticrec_jax.language.llmrank import LLMRank
from agenticrec_jax.language.methods import METHODS, Method
from agenticrec_jax.language.policy import PolicyCompleter
from agenticrec_jax.language.recorded import Recorded
from agenticrec_jax.parallel import multihost
from agenticrec_jax.paths import make_directory
from agenticrec_jax.runs.evaluations import evaluation_row, write_evaluation
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runs.stage_config import TrainingConfig
from agenticrec_jax.runtime.phases import phase
from agenticrec_jax.runtime.progress import Progress
from agenticrec_jax.training.packing import Packing

COMPLETIONS = "completions.jsonl"
DECODING = tuple(field.name for field in dataclasses.fields(Decoding))
TOGETHER = 64  # examples that are ranked together, between two lines of progress


def make_method(run: Run, name: str, **options: Any) -> Method:
    """Returns a method by name.

    Args:
      run: log and artifacts.
      name: key of `METHODS`.
      options: fields of the method that differ from their defaults. ``temperature`` and
        ``max_tokens`` are those of its `Decoding`.

    Raises:
      InputError: there is no such method, it has no such option, or not with this value.
    """
    if name not in METHODS:
        raise InputError(f"method: found {name!r}, expected one of {', '.join(METHODS)}")
    kind = METHODS[name]
    known = [field.name for field in dataclasses.fields(kind)]
    decoding = {each: options.pop(each) for each in DECODING if each in options}
    for option in options:
        if option not in known:
            raise InputError(f"method {name}: found option {option!r}, which it does not have")
    options["decoding"] = dataclasses.replace(kind.decoding, **decoding)
    if kind is LLMRank:
        return LLMRank(run.data.log.items, **({"seed": run.config.seed} | options))
    return InteRecAgent(run.data.log, run.artifacts_b, **options)


def policy_completer(run: Run) -> PolicyCompleter:
    """Returns the run's policy as a completer of chats, with the seed of the run."""
    policy = run.policy

    def engine(prompt_tokens: int, max_tokens: int):
        return run.make_engine(max_tokens=max_tokens, prompt_tokens=prompt_tokens)

    return PolicyCompleter(
        policy.params,
        policy.tokenizer,
        engine,
        context=nnx.merge(policy.graphdef, policy.params).config.max_position_embeddings,
        name=str(run.policy_directory),
        weights=policy.weights_hash,
        seed=run.config.seed,
    )


def evaluate_method(
    run: Run,
    method: Method,
    completer: Completer,
    examples: Sequence[RankingExample],
    *,
    name: str,
    split: str,
) -> dict:
    """Ranks examples and writes the row by `write_answers`; returns the results.

    Completions are kept in ``completions.jsonl`` as they come, so a run that was interrupted asks
    only for the others.

    Args:
      run: log, seed and workdir.
      method: ranks.
      completer: the model.
      examples: of the split.
      name: of the row.
      split: ``valid`` or ``test``.
    """
    make_directory(run.workdir, "flag --workdir")
    recorded = Recorded(completer, run.workdir / COMPLETIONS)
    answers: list[Answer] = []
    with phase(f"evaluation, {name}"), Progress(name, len(examples), unit="examples") as progress:
        for first in range(0, len(examples), TOGETHER):
            answers += method.rank(recorded, examples[first : first + TOGETHER])
            invalid = sum(answer.invalid_reason is not None for answer in answers)
            progress.advance(len(answers) - first, f"invalid {invalid / len(answers):.3f}")
    facts = {"completer": completer.identity, "method": method_options(method)}
    return write_answers(run, answers, examples, name=name, split=split, facts=facts)


def write_answers(
    run: Run,
    answers: Sequence[Answer],
    examples: Sequence[RankingExample],
    *,
    name: str,
    split: str,
    facts: Mapping[str, Any],
) -> dict:
    """Writes the row of a method's answers, as `write_evaluation`; returns the results.

    An invalid answer is a miss and is counted. ``unreadable_rate`` is the share of completions that
    name no candidate: a method that asks several times may have them without an invalid answer. A
    line of the ``.jsonl`` has the fields of `Answer` and the target's rank, null for none.

    Args:
      run: log, seed and workdir.
      answers: of the examples.
      examples: of the split.
      name: of the row.
      split: ``valid`` or ``test``.
      facts: ``completer`` and ``method``, for the protocol.
    """
    log = run.data.log
    rankings = number_rankings(
        name,
        [answer.ranking for answer in answers],
        examples,
        log,
        valid=[answer.invalid_reason is None for answer in answers],
        calls=[answer.calls for answer in answers],
        seed=run.config.seed,
    )
    texts = sum(len(answer.texts) for answer in answers)
    unreadable = sum(answer.unreadable for answer in answers)
    row = evaluation_row(name, rankings, answers, examples, log)
    row |= {"unreadable_rate": unreadable / max(texts, 1)}
    records = (
        dataclasses.asdict(answer) | {"rank": answer.rank(example) or None}
        for answer, example in zip(answers, examples, strict=True)
    )
    return write_evaluation(run, row, rankings, records, examples, split=split, facts=facts)


def method_options(method: Method) -> dict[str, Any]:
    """Returns the options of a method that a number or a word gives, for the protocol."""
    values = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    plain = {name: v for name, v in values.items() if isinstance(v, str | int | float)}
    return plain | dataclasses.asdict(method.decoding)


def evaluate_scores(
    run: Run,
    examples: Sequence[RankingExample],
    scores_of: Callable[[RankingExample], Float[np.ndarray, "C"]],
    *,
    name: str,
    split: str,
    title_words: int,
) -> dict:
    """Ranks examples by scores of the run's policy and writes the row; returns the results.

    Args:
      run: log, policy and workdir.
      examples: of the split.
      scores_of: the scores of an example's candidates.
      name: of the row.
      split: ``valid`` or ``test``.
      title_words: words of a title in the questions, for the protocol.
    """
    answers = []
    with phase(f"evaluation, {name}"), Progress(name, len(examples), unit="examples") as progress:
        for example in examples:
            answers.append(ranked_answer(example, scores_of(example)))
            progress.advance()
    facts = {"completer": f"policy {run.policy.weights_hash}"}
    facts["method"] = {"title_words": title_words}
    return write_answers(run, answers, examples, name=name, split=split, facts=facts)


def stage_record(run: Run, stage: str, seed: int) -> dict[str, Any]:
    """Returns everything that a resumed stage of fixed answers must agree with."""
    return {
        stage: dataclasses.asdict(getattr(run.config, stage)),
        "policy": dataclasses.asdict(run.config.policy),
        "candidates": run.data.candidate_hash,
        "start": str(run.policy_directory),
        "seed": seed,
    }


def stage_packing(
    run: Run, policy: Policy, settings: TrainingConfig, *, token_budget: int | None = None
) -> Packing:
    """Returns the packing of a stage, or of its row with ``token_budget=1``, a group at a time."""
    return Packing(
        token_budget=settings.token_budget if token_budget is None else token_budget,
        prompt_buckets=settings.prompt_buckets,
        completion_buckets=settings.completion_buckets,
        group_multiple=multihost.row_shards(run.mesh),
        pad_id=policy.tokenizer.pad_id,
    )
