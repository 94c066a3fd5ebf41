"""A run: everything that a configuration builds, each object once."""

import operator
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import jax
from jax.sharding import Mesh

from agenticrec_jax.agent.answers import ranking_constraint
from agenticrec_jax.agent.chat import RECTHINKER
from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.prompts import PromptBuilder, make_prompts
from agenticrec_jax.bundled import resolve
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.generation.engine import Engine, EngineConfig
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.parallel.multihost import local_mesh
from agenticrec_jax.paths import as_path
from agenticrec_jax.runs.config import PATH_SETTINGS, MeshConfig, RunConfig
from agenticrec_jax.runs.data import (
    RunData,
    load_artifacts,
    load_data,
    load_sequential,
    workdir_path,
)
from agenticrec_jax.runs.plugins import load_plugins
from agenticrec_jax.runs.policy import Policy, load_policy, weights_hash
from agenticrec_jax.runs.remembered import remember
from agenticrec_jax.runtime.trackers import check_installed, tracking
from agenticrec_jax.sequential.model import SequentialModel
from agenticrec_jax.tokenizers.base import Tokenizer
from agenticrec_jax.tools.artifacts import Artifacts, Fitted
from agenticrec_jax.tools.base import Toolbox
from agenticrec_jax.tools.profiles import Profiles, read_profiles
from agenticrec_jax.tools.registry import agenticrec_tools, recthinker_tools


class Run:
    """Log, tools, policy, engine and agent of a configuration, each built on first use.

    The constructor checks the paths of the configuration and imports tools, reward, losses and
    advantages of your own, so that a bad one is refused before anything is loaded or written.

    Example::

        from agenticrec_jax.runs import Run, RunConfig, train

        run = Run(RunConfig(), "workdir")        # the embedded log and policy
        log = run.data.log                       # interactions and items
        agent = run.training_agent               # tools that saw nothing of the policy examples
        engine = run.engine                      # batched sampler that pauses at tool calls
        policy = train(run, "rta")               # resumes from workdir/rta/checkpoints

    Args:
      config: of the run.
      workdir: directory of its files; made when the candidates are written.
      policy_directory: policy to start from; None for the config's.
      data: a log and examples of your own making; None to load the config's.
      policy: a policy in memory; None to load ``policy_directory``.

    Raises:
      InputError: names the setting that cannot be used.
    """

    def __init__(
        self,
        config: RunConfig,
        workdir: str | os.PathLike,
        *,
        policy_directory: str | os.PathLike | None = None,
        data: RunData | None = None,
        policy: Policy | None = None,
    ):
        self.config = config
        self.workdir = workdir_path(workdir)
        self.policy_directory = policy_directory or config.policy.directory
        check_paths(config)
        self.plugins = load_plugins(config)
        check_installed(config.logging.trackers)
        if data is not None:
            self.data = data
        if policy is not None:
            self.policy = policy

    def tracking(self) -> AbstractContextManager[None]:
        """Opens the trackers of ``config.logging`` for a block; see `runtime.trackers.tracking`."""
        settings = self.config.logging
        return tracking(
            settings.trackers, self.workdir, project=settings.project, config=asdict(self.config)
        )

    @cached_property
    def mesh(self) -> Mesh | None:
        """Mesh over all devices of all processes; None for one process on one device."""
        return device_mesh(self.config.mesh)

    @cached_property
    def data(self) -> RunData:
        """The log, its splits and the frozen candidates."""
        data = load_data(self.config.dataset, self.workdir)
        remember(self.workdir, self.config, self.policy_directory)
        return data

    @cached_property
    def policy(self) -> Policy:
        """The policy that the run starts from, placed on the mesh."""
        config = self.config
        return load_policy(config.policy, self.policy_directory, mesh=self.mesh, seed=config.seed)

    @cached_property
    def artifacts_a(self) -> Artifacts:
        """Artifacts of training: fitted on events before the first policy example."""
        return self._artifacts("artifacts_a", self.data.splits.fit_range_a)

    @cached_property
    def artifacts_b(self) -> Artifacts:
        """Artifacts of evaluation: fitted on events before the first valid example."""
        return self._artifacts("artifacts_b", self.data.splits.fit_range_b)

    @cached_property
    def artifacts_whole(self) -> Artifacts:
        """Artifacts of live recommendations: fitted on all events. No example can be served."""
        log = self.data.log
        fit_range = FitRange(end_time=int(log.time[-1]) + 1, events=len(log))
        return self._artifacts("artifacts_whole", fit_range)

    def _artifacts(self, name: str, fit_range: FitRange) -> Artifacts:
        config = self.config
        return load_artifacts(
            self.data,
            config.sasrec,
            config.dataset.max_history,
            self.workdir / name,
            fit_range,
        )

    def sequential_model(self, method: str) -> Fitted[SequentialModel]:
        """Returns a sequential recommender of evaluation, fitted on the range of `artifacts_b`.

        Args:
          method: name in `sequential.methods.METHODS`.
        """
        config = self.config
        return load_sequential(
            self.data,
            method,
            config.sasrec,
            config.dataset.max_history,
            self.workdir / f"{method}_b",
            self.data.splits.fit_range_b,
        )

    @cached_property
    def profiles(self) -> Profiles | None:
        """Stored profiles of ``config.profiles.file``; None without a file.

        Raises:
          InputError: the profiles are of another log, or written by another model than
            ``config.profiles.model`` (the policy, if empty).
        """
        config = self.config
        if not config.profiles.file:
            return None
        profiles = read_profiles(resolve(config.profiles.file))
        profiles.expect({"log": self.data.log.fingerprint}, "the log that is open")
        model = config.profiles.model or config.policy.directory
        because = f"the weights of {model} (config.profiles.model names others)"
        profiles.expect({"model_hash": weights_hash(resolve(model))}, because)
        return profiles

    def toolbox(self, artifacts: Artifacts) -> Toolbox:
        """Returns the tools of the config's agent over ``artifacts``.

        Extra tools come last, and disabled ones are not there.
        """
        config = self.config
        items = self.data.log.items
        options = config.tools.options()
        if config.agent == RECTHINKER:
            tools = recthinker_tools(items, artifacts, options, self.profiles)
        else:
            tools = agenticrec_tools(artifacts, options, self.profiles)
        arguments = {"artifacts": artifacts, "items": items, "options": options}
        return self.plugins.configured(tools, arguments | {"profiles": self.profiles})

    def prompts(self, tokenizer: Tokenizer) -> PromptBuilder:
        """Returns the prompt builder for a tokenizer."""
        policy = self.config.policy
        return make_prompts(
            tokenizer,
            self.data.log.items,
            policy.title_tokens,
            policy.prompt_style,
            policy.observation_style,
            policy.observation_tokens,
            self.config.agent,
        )

    def agent(self, artifacts: Artifacts, **options: Any) -> Agent:
        """Returns the agent with tools over ``artifacts``; ``options`` are fields of `Agent`."""
        options = {"reward": self.plugins.reward} | options
        prompts = self.prompts(self.policy.tokenizer)
        return Agent(self.data.log, self.toolbox(artifacts), artifacts, prompts, **options)

    @cached_property
    def training_agent(self) -> Agent:
        """The agent of rollouts, mining and imitation, on `artifacts_a`."""
        return self.agent(self.artifacts_a)

    @cached_property
    def evaluation_agent(self) -> Agent:
        """The agent that ranks valid and test examples, on `artifacts_b`."""
        return self.agent(self.artifacts_b)

    @cached_property
    def engine(self) -> Engine:
        """The rollout engine of training, on this process's devices of the mesh."""
        return self.make_engine()

    def make_engine(
        self,
        *,
        constrained: bool = False,
        max_tokens: int | None = None,
        prompt_tokens: int | None = None,
        sizes: EngineConfig | None = None,
    ) -> Engine:
        """Returns a rollout engine on this process's devices of the mesh.

        The tokenizer says at which ids a row pauses and ends. Where one id does both the row
        pauses, and the episode ends it.

        Args:
          constrained: whether an answer that is begun can only become a valid ranking. Training
            refuses such an engine.
          max_tokens: of a completion; None for the config's.
          prompt_tokens: of the longest prompt; None for the config's longest bucket.
          sizes: of the engine; None for the config's.
        """
        config = sizes or self.config.engine
        if prompt_tokens is not None:
            shorter = (size for size in config.prompt_buckets if size < prompt_tokens)
            config = replace(config, prompt_buckets=(*shorter, prompt_tokens))
        if max_tokens is not None:
            config = replace(config, max_tokens=max_tokens)
        tokenizer = self.policy.tokenizer
        return Engine(
            self.policy.graphdef,
            config,
            pause_id=tokenizer.pause_id,
            stop_ids=[i for i in tokenizer.stop_ids if i != tokenizer.pause_id],
            pad_id=tokenizer.pad_id,
            mesh=local_mesh(self.mesh),
            constraint=ranking_constraint(tokenizer) if constrained else None,
        )

    def protocol(self, split: str, seeds: Sequence[int], *, examples: int) -> dict:
        """Returns the facts that every number of this run is reported with.

        Args:
          split: of the examples.
          seeds: of training or sampling.
          examples: number of the split's examples that are ranked, `data.examples.evenly_spread`.
        """
        dataset = self.config.dataset
        return {
            "dataset": dataset.label,
            "split": split,
            "examples": examples,
            "negatives": dataset.negatives,
            "candidate_hash": self.data.candidate_hash,
            "candidate_seed": dataset.candidate_seed,
            "seeds": list(seeds),
            "reward": self.config.reward,
        }


def rollout_record(run: Run) -> dict[str, Any]:
    """Returns the candidates' hash and the disabled tools, by which stored rollouts are known."""
    record: dict[str, Any] = {"candidates": run.data.candidate_hash}
    if run.config.tools.disabled:
        record["disabled_tools"] = list(run.config.tools.disabled)
    return record


def check_paths(config: RunConfig) -> None:
    """Checks every path of a configuration by `paths.as_path`; it need not exist.

    Raises:
      InputError: names the first setting of `PATH_SETTINGS` that is no path or address of a bucket.
    """
    for name in PATH_SETTINGS:
        as_path(operator.attrgetter(name)(config), f"config.{name}")


def device_mesh(config: MeshConfig) -> Mesh | None:
    """Returns a mesh over all devices of all processes; None for one process on one device.

    Raises:
      InputError: the sizes of the axes do not multiply to the number of devices.
    """
    sizes = asdict(config)
    if jax.process_count() == 1 and set(sizes.values()) == {1}:
        return None
    return make_mesh(**sizes)
