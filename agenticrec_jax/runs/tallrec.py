"""TALLRec on the run's policy: its training on policy examples, and its row."""

from collections.abc import Sequence

from agenticrec_jax.data.examples import RankingExample, evenly_spread
from agenticrec_jax.language.tallrec import YesNoPrompts, YesNoQuestions, yes_scores
from agenticrec_jax.paths import Path
from agenticrec_jax.runs.imitation import imitate
from agenticrec_jax.runs.language import evaluate_scores, stage_packing, stage_record
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.run import Run
from agenticrec_jax.training.logprobs import make_scorer


def train_tallrec(run: Run, policy: Policy, directory: Path, seed: int) -> Policy:
    """Trains on questions about policy examples, as ``config.tallrec`` says; returns the policy."""
    settings = run.config.tallrec
    examples = evenly_spread(run.data.examples["policy"], settings.examples)
    source = YesNoQuestions(
        examples,
        settings.epochs,
        settings.batch,
        seed,
        prompts=yes_no_prompts(run, policy),
        negatives=settings.negatives,
    )
    packing = stage_packing(run, policy, settings)
    record = stage_record(run, "tallrec", seed)
    return imitate(policy, "tallrec", settings, source, packing, run.mesh, directory, record)


def evaluate_tallrec(
    run: Run, examples: Sequence[RankingExample], *, name: str, split: str
) -> dict:
    """Ranks examples by the log-odds of yes, as `language.evaluate_scores`."""
    policy = run.policy
    prompts = yes_no_prompts(run, policy)
    score = make_scorer(policy.graphdef, mesh=run.mesh)
    packing = stage_packing(run, policy, run.config.tallrec, token_budget=1)
    return evaluate_scores(
        run,
        examples,
        lambda example: yes_scores(score, policy.params, prompts, example, packing),
        name=name,
        split=split,
        title_words=prompts.title_words,
    )


def yes_no_prompts(run: Run, policy: Policy) -> YesNoPrompts:
    """Returns the questions of training and of ranking, which must be the same."""
    return YesNoPrompts(policy.tokenizer, run.data.log.items, run.config.tallrec.title_words)
