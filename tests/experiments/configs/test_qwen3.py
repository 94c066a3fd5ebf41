import os

import pytest

from agenticrec_jax.agent.prompts import make_prompts
from agenticrec_jax.bundled import resolve
from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.data.candidates import draw_split_candidates
from agenticrec_jax.data.interactions import read_log
from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.runs import Run, run_config
from agenticrec_jax.runs.data import RunData
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tokenizers.load import load_tokenizer
from agenticrec_jax.tools.base import AsOfView
from experiments.configs import office, qwen3


def test_its_sizes_agree_with_each_other():
    config = run_config(load_config("qwen3"))
    for stage in (config.rta, config.ppr):
        assert stage.prompt_buckets[-1] == config.engine.prompt_buckets[-1]
        assert stage.completion_buckets[-1] == config.engine.max_tokens == 6144
        assert stage.members * stage.completion_buckets[-1] <= stage.token_budget
        assert (stage.prompts, stage.members, stage.temperature) == (64, 8, 0.6)


@pytest.mark.parametrize("preset", qwen3.PRESETS)
def test_a_preset_has_what_fits_its_model_and_slice(preset):
    kind, chips, size = (preset if preset.endswith("B") else f"{preset}_4B").split("_")
    fitted = qwen3.FITTED[size, f"{kind}_{chips}"]
    config = run_config(load_config(f"qwen3:{preset}"))
    assert config.mesh.fsdp * config.mesh.tensor == int(chips)
    assert (config.mesh.tensor, config.engine.slots) == (fitted.tensor, fitted.slots)
    assert config.rta.members_at_once == config.ppr.members_at_once == fitted.members
    frozen = config.policy.lora.rank > 0
    assert (config.policy.param_dtype == "bfloat16") == frozen == (fitted.lora_rank > 0)
    assert f"Qwen3-{size}" in config.policy.directory


def test_every_size_is_fitted_to_every_slice():
    assert set(qwen3.FITTED) == {(s, k) for s in ("0.6B", "1.7B", "4B", "8B") for k in qwen3.CHIPS}
    with pytest.raises(ValueError, match="v5e_16_2B"):
        qwen3.get_config("v5e_16_2B")


def tools_of(name, workdir):
    """The tools of a configuration on the tiny world."""
    world = tiny_world()
    run = Run(run_config(load_config(name)), workdir, data=RunData(world.log, None, {}, ""))
    return run.toolbox(world.artifacts)


@pytest.mark.parametrize(
    ("name", "grouped"),
    [
        ("qwen3", True),
        ("amazon2023", True),
        *((f"office:{preset}", False) for preset in office.PRESETS),
    ],
)
def test_a_large_policy_reads_the_candidates_by_category_and_price(name, grouped, tmp_path):
    world = tiny_world()
    view = AsOfView(world.log, world.examples[0])
    text = tools_of(name, tmp_path).call(view, "candidates_analyze", {}).text
    assert [f"{field} " in text for field in ("categories", "brands", "prices")] == [grouped] * 3
    assert "; popular:" in text


def test_recthinkers_tools_take_the_same_settings(tmp_path):
    assert load_config("recthinker").tools == load_config("qwen3").tools
    assert len(tools_of("recthinker", tmp_path).names) == 5


@pytest.mark.peer
def test_every_prompt_of_the_log_fits(tmp_path):
    config = run_config(load_config("qwen3"))
    data = config.dataset
    log = read_log(resolve(data.interactions), resolve(data.items))
    splits = chronological_splits(prediction_samples(log, data.max_history))
    tokenizer = load_tokenizer(os.environ["AGENTICREC_QWEN3_TOKENIZER"])
    prompts = make_prompts(tokenizer, log.items, config.policy.title_tokens)
    tools = tools_of("qwen3", tmp_path).schemas()
    lengths = [
        len(prompts.build(example.history, example.candidates, tools))
        for example in draw_split_candidates(log, splits, data.negatives, seed=data.candidate_seed)
    ]
    assert qwen3.PROMPT_TOKENS / 2 < max(lengths) <= qwen3.PROMPT_TOKENS
