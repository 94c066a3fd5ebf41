"""Questions that are answered by titles, for the stages and rows of LLaRA, S-DPO and ReRe."""

from collections.abc import Sequence

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.errors import InputError
from agenticrec_jax.language.titles import TitlePrompts
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.run import Run


def title_prompts(
    run: Run,
    policy: Policy,
    stage: str,
    examples: Sequence[RankingExample],
    *,
    context: int,
    first_item_id: int | None = None,
) -> TitlePrompts:
    """Returns the questions of training and of ranking, which must be the same.

    Args:
      run: log and settings.
      policy: whose tokenizer writes them.
      stage: whose settings say how long titles are.
      examples: that will be asked about.
      context: most tokens of a question and its answer.
      first_item_id: see `TitlePrompts.prompt`.

    Raises:
      InputError: an example does not fit the context.
    """
    words = getattr(run.config, stage).title_words
    prompts = TitlePrompts(policy.tokenizer, run.data.log.items, words)
    for example in examples:
        answers = prompts.answers(example.candidates)
        longest = max(len(answer.ids) for answer in answers)
        tokens = len(prompts.prompt(example, first_item_id)) + longest
        if tokens > context:
            raise InputError(
                f"config.{stage}.title_words: found {words}, with which example "
                f"{example.example_id} has {tokens} tokens, expected at most the {context} of the "
                "model's context"
            )
    return prompts
