import pytest

from agenticrec_jax.runs import run_config
from experiments.configs import qwen3, recthinker


def test_each_of_the_papers_sets_has_a_hundred_users_eight_events_and_ten_candidates():
    assert len(recthinker.SETS) == 4
    for name in recthinker.SETS:
        config = recthinker.get_config(name)
        given = config.preparation
        assert run_config(config).dataset.label == name and name.endswith(f"_{given.sampling}")
        assert (given.users, given.last_events, given.own_order) == (100, 8, True)
        assert (config.dataset.split, config.dataset.negatives) == ("leave_one_out", 9)
        assert config.dataset.interactions == f"{given.output}/interactions.parquet"
        assert given.format == ("movielens1m" if "movielens" in name else "amazon2018")


def test_without_a_name_it_is_the_office_log_and_an_unknown_name_is_refused():
    of_office = run_config(qwen3.get_config()).dataset.label
    assert run_config(recthinker.get_config()).dataset.label == of_office == "office_sample"
    with pytest.raises(ValueError, match="found 'cds', expected one of movielens_sparse"):
        recthinker.get_config("cds")


def test_the_embedded_presets_have_room_for_three_observations_and_a_warm_start():
    for name in ("tiny", "smoke"):
        config = run_config(recthinker.get_config(name))
        assert (config.agent, config.reward, config.dataset.negatives) == (*["recthinker"] * 2, 9)
        assert config.policy.directory == "tools_data/tiny_policy"
        most = config.engine.max_tokens
        assert config.self_sft.completion_buckets[-1] == config.rta.completion_buckets[-1] == most
        assert config.warm_start.lessons
    assert config.evaluation.examples == 12
