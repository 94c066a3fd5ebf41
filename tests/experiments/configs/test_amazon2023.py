import dataclasses

import pytest

from agenticrec_jax.ingest.prepare import PRESETS
from agenticrec_jax.runs import run_config
from experiments.configs import amazon2023, qwen3


def test_programs_read_where_prepare_data_writes():
    config = amazon2023.get_config("Video_Games")
    given = config.preparation
    assert run_config(config).preparation == given.to_dict()
    assert (given.format, given.category) == ("amazon2023", "Video_Games")
    assert run_config(config).dataset.label == "Video_Games"
    assert config.dataset.interactions == f"{given.output}/interactions.parquet"
    assert config.dataset["items"] == f"{given.output}/items.parquet"
    rules = dataclasses.asdict(PRESETS["amazon2023"])
    assert {name: given[name] for name in rules} == rules
    assert config.policy == qwen3.get_config().policy


def test_a_category_that_the_paper_does_not_use_is_refused():
    with pytest.raises(ValueError, match="found 'Books', expected one of CDs_and_Vinyl"):
        amazon2023.get_config("Books")
