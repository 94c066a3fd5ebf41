import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.data.candidates import draw_split_candidates
from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.baselines.sasrec import sasrec_scores
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log
from agenticrec_jax.tools.artifacts import Artifacts, index_users
from agenticrec_jax.tools.statistics import fit_statistics


def test_scores_are_the_models_own_and_a_fitted_sample_is_refused():
    log = synthetic_log(SyntheticConfig(users=60, items=50, brands=5), seed=2)
    splits = chronological_splits(prediction_samples(log))
    examples = draw_split_candidates(log, splits, seed=0, split_names=("policy", "test"))
    model = Sasrec(SasrecConfig(items=50, width=8, blocks=1), rngs=nnx.Rngs(0))
    fit_range = splits.fit_range_b
    artifacts = Artifacts(
        fit_statistics(log, fit_range), index_users(model, log, fit_range), fit_range
    )
    served = [example for example in examples if example.split == "test"]
    for example, scores in zip(served[:3], sasrec_scores(artifacts, served), strict=False):
        state = user_states(model, [example.history])[0]
        table = np.asarray(model.item_embeddings)[list(example.candidates)]
        np.testing.assert_allclose(scores, table @ state, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="artifacts"):
        sasrec_scores(artifacts, examples)
