import os

import pytest

from agenticrec_jax.agent.prompts import make_prompts
from agenticrec_jax.bundled import resolve
from agenticrec_jax.cli import app
from agenticrec_jax.data.candidates import draw_split_candidates
from agenticrec_jax.data.interactions import read_log
from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.generation.config import EngineConfig
from agenticrec_jax.runs import pipeline
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tokenizers.load import load_tokenizer
from agenticrec_jax.tools.base import AsOfView
from experiments.configs import amazon2023, office, qwen3, recthinker


def test_its_sizes_agree_with_each_other():
    config = qwen3.get_config()
    sizes = EngineConfig(**config.engine)
    for stage in (config.rta, config.ppr):
        assert stage.prompt_buckets[-1] == sizes.prompt_buckets[-1]
        assert stage.completion_buckets[-1] == sizes.max_tokens == 6144
        assert stage.members * stage.completion_buckets[-1] <= stage.token_budget
        assert (stage.prompts, stage.members, stage.temperature) == (64, 8, 0.6)


def tools_of(config):
    world = tiny_world()
    return pipeline.toolbox(config, world.artifacts, world.log.items)


@pytest.mark.parametrize(
    ("make", "grouped"),
    [
        (qwen3.get_config, True),
        (amazon2023.get_config, True),
        *((lambda preset=preset: office.get_config(preset), False) for preset in office.PRESETS),
    ],
)
def test_a_large_policy_reads_the_candidates_by_category_and_price(make, grouped):
    world = tiny_world()
    view = AsOfView(world.log, world.examples[0])
    said = tools_of(make()).call(view, "candidates_analyze", {}).text
    assert [f"{name} " in said for name in ("categories", "brands", "prices")] == [grouped] * 3
    assert "; popular:" in said


def test_recthinkers_tools_take_the_same_settings():
    assert recthinker.get_config().tools == qwen3.get_config().tools
    assert len(tools_of(recthinker.get_config()).names) == 5


@pytest.mark.peer
def test_every_prompt_of_the_log_fits():
    config = qwen3.get_config()
    data = config.dataset
    log = read_log(resolve(data.interactions), app.resolve(data["items"]))
    splits = chronological_splits(prediction_samples(log, data.max_history))
    tokenizer = load_tokenizer(os.environ["AGENTICREC_QWEN3_TOKENIZER"])
    prompts = make_prompts(tokenizer, log.items, config.policy.title_tokens)
    tools = tools_of(config).schemas()
    lengths = [
        len(prompts.build(example.history, example.candidates, tools))
        for example in draw_split_candidates(log, splits, data.negatives, seed=data.candidate_seed)
    ]
    assert qwen3.PROMPT_TOKENS / 2 < max(lengths) <= qwen3.PROMPT_TOKENS
