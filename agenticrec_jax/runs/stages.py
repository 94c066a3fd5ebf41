"""The stages of training: each takes a run and a policy and returns the trained policy.

- ``sft`` imitates scripted demonstrations (the warm start of the tiny policy).
- ``self_sft`` imitates the best of the policy's own trajectories (RecThinker).
- ``rta`` is list-wise GRPO on NDCG.
- ``ppr`` mines hard pairs with its policy and refines the policy on them.
- ``pairs`` trains on pairs without rollouts, by PPR's logistic loss, DPO or S-DPO.
- ``tallrec`` answers yes or no to single candidates, without the agent (TALLRec).
- ``llara`` answers by the target's title, from titles and SASRec embeddings (LLaRA).
- ``title_sft`` answers by the target's title, from titles alone.
- ``s_dpo`` prefers the target's title to those of other candidates (S-DPO).
- ``rere`` is GRPO on the beams of a search over candidates' titles (ReRe).

A stage resumes from its newest checkpoint in ``<directory>/<stage>/checkpoints``.
"""

import os

from agenticrec_jax.errors import expect
from agenticrec_jax.paths import Path
from agenticrec_jax.runs import imitation
from agenticrec_jax.runs.heldout import AFTER, ask_heldout
from agenticrec_jax.runs.llara import evaluate_llara, train_llara
from agenticrec_jax.runs.pairs import train_pairs
from agenticrec_jax.runs.policy import Policy, save_policy
from agenticrec_jax.runs.reinforcement import REINFORCEMENT, train_reinforced
from agenticrec_jax.runs.rere import evaluate_rere, train_rere
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runs.tallrec import evaluate_tallrec, train_tallrec
from agenticrec_jax.runs.titles import evaluate_s_dpo, train_s_dpo, train_title_sft

# The stages whose policy a stage starts from: the first that is in the workdir.
PREREQUISITES = {
    "sft": (),
    "self_sft": ("sft",),
    "rta": ("self_sft", "sft"),
    "ppr": ("rta",),
    "pairs": ("rta", "self_sft", "sft"),
    "tallrec": (),
    "llara": (),
    "title_sft": (),
    "s_dpo": ("title_sft",),
    "rere": ("title_sft",),
}
STAGES = tuple(PREREQUISITES)


def starting_directory(workdir: str | os.PathLike, stage: str, default: str) -> str:
    """Returns the policy directory that a stage starts from: an earlier stage's, or ``default``."""
    earlier = (Path(workdir) / name / "policy" for name in PREREQUISITES[stage])
    return next((str(path) for path in earlier if path.is_dir()), default)


def train(
    run: Run,
    stage: str,
    policy: Policy | None = None,
    *,
    directory: str | os.PathLike | None = None,
    seed: int | None = None,
    use_tools: bool = True,
) -> Policy:
    """Trains a policy in one stage and writes it to ``<directory>/<stage>/policy``.

    Args:
      run: log, tools and engine.
      stage: one of `STAGES`.
      policy: to start from; its parameters are consumed. None for the run's.
      directory: of checkpoints, metrics and the policy; None for the run's workdir.
      seed: of the order of examples and of sampling; None for the config's.
      use_tools: whether rollouts and validation of ``rta`` offer tools. Without them the stage is
        the paper's control: the same settings, with reasoning alone (AgenticRec, Table 2).
        Expected rewards are those of the stage with tools.

    Returns:
      The trained policy.

    Raises:
      InputError: a setting cannot be used, or checkpoints of other settings are in the directory.
      Terminated: SIGTERM came; what is done is saved, and the same call resumes.
    """
    expect(stage in STAGES, "stage", stage, f"one of {', '.join(STAGES)}")
    expect(use_tools or stage == "rta", "use_tools", use_tools, f"True in stage {stage}")
    policy = run.policy if policy is None else policy
    directory = Path(directory or run.workdir)
    seed = run.config.seed if seed is None else seed
    with run.tracking():
        if stage in REINFORCEMENT:
            trained = train_reinforced(run, stage, policy, directory, seed, use_tools)
        else:
            trained = _SUPERVISED[stage](run, policy, directory, seed)
        if stage == "ppr":
            ask_heldout(run, trained, directory / stage, AFTER, seed=seed)
    save_policy(trained, directory / stage / "policy")
    return trained


# Rows of language models that a stage of the same name trains, without the agent.
LANGUAGE_ROWS = {
    "tallrec": evaluate_tallrec,
    "llara": evaluate_llara,
    "s_dpo": evaluate_s_dpo,
    "rere": evaluate_rere,
}
_SUPERVISED = {
    "sft": imitation.train_sft,
    "self_sft": imitation.train_self_sft,
    "pairs": train_pairs,
    "tallrec": train_tallrec,
    "llara": train_llara,
    "title_sft": train_title_sft,
    "s_dpo": train_s_dpo,
    "rere": train_rere,
}
