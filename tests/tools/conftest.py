"""A synthetic log with artifacts whose SASRec is untrained: random states are evidence enough."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.data.candidates import draw_split_candidates
from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log
from agenticrec_jax.tools.artifacts import Artifacts, index_users
from agenticrec_jax.tools.statistics import fit_statistics


@pytest.fixture(scope="session")
def log():
    """A log whose items have prices and averages, some unknown, and whose ratings have gaps."""
    log = synthetic_log(SyntheticConfig(users=120, items=90, brands=12), seed=5)
    rng = np.random.default_rng(6)
    price = rng.uniform(1, 60, 90).astype(np.float32)
    price[::7] = np.nan
    brand = tuple(None if code % 11 == 0 else name for code, name in enumerate(log.items.brand))
    average = rng.uniform(1, 5, 90).astype(np.float32)
    items = dataclasses.replace(log.items, price=price, brand=brand, average_rating=average)
    rating = np.where(rng.random(len(log)) < 0.1, np.nan, log.rating).astype(np.float32)
    return dataclasses.replace(log, items=items, rating=rating)


@pytest.fixture(scope="session")
def splits(log):
    return chronological_splits(prediction_samples(log))


@pytest.fixture(scope="session")
def sasrec(log):
    config = SasrecConfig(items=log.num_items, width=8, blocks=1, heads=2)
    return Sasrec(config, rngs=nnx.Rngs(1))


@pytest.fixture(scope="session")
def artifacts(log, splits, sasrec):
    fit_range = splits.fit_range_b
    index = index_users(sasrec, log, fit_range)
    return Artifacts(fit_statistics(log, fit_range), index, fit_range)


@pytest.fixture(scope="session")
def others(artifacts, splits):
    """What the artifacts tell a question after their range."""
    return artifacts.as_of(splits.valid[0])


@pytest.fixture(scope="session")
def examples(log, splits):
    drawn = draw_split_candidates(log, splits, seed=0, split_names=("valid", "test"))
    return [example for example in drawn if len(example.history) >= 4]


@pytest.fixture(scope="session")
def twins(log):
    """The log with the same title for every two items."""
    titles = tuple(log.items.title[code - code % 2] for code in range(log.num_items))
    return dataclasses.replace(log, items=dataclasses.replace(log.items, title=titles))
