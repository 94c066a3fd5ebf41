"""Credit by rank: the tokens of a ranking behind the target's place get no gradient.

The NDCG of a list with one target is settled once the list names the target. What stands behind it
changes nothing, so its gradient is noise alone. Rank-GRPO (arXiv:2510.20150) gives the tokens of
each rank what the list gains from that rank on; with one target, that is the whole reward up to the
target's place and nothing behind it.
"""

import re
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool

from agenticrec_jax.agent import protocol
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.types import SAMPLED

_OPEN = re.compile(re.escape(protocol.ANSWER_OPEN) + r"\s*\\boxed\{\[")
_NUMBER = re.compile(r"\d+")


def settled_tokens(trajectory: Trajectory, spelling: Callable[[int], str]) -> Bool[np.ndarray, "T"]:
    """Returns the sampled tokens of a ranking that begin behind the number of the target.

    There are none where the target is not in the ranking, or the output is invalid: there every
    token was a chance to do better.

    Args:
      trajectory: ended, with the rank of its target.
      spelling: text of one id. A blank that it lacks at the start of a word does not matter.
    """
    settled = np.zeros(len(trajectory.ids), bool)
    if trajectory.rank is None:
        return settled
    observed = np.flatnonzero(np.asarray(trajectory.origin) != SAMPLED)
    start = observed[-1] + 1 if len(observed) else 0  # of the last turn
    pieces = [spelling(int(token)) for token in trajectory.ids[start:]]
    turn = protocol.with_blank_thoughts("".join(pieces))
    numbers = list(_NUMBER.finditer(turn, _OPEN.search(turn).end()))
    first_characters = np.cumsum([0, *map(len, pieces)])[:-1]
    settled[start:] = first_characters >= numbers[trajectory.rank - 1].end()
    return settled
