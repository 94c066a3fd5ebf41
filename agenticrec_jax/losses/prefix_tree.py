"""Values on the prefix tree of a group: credit for the tokens at which members part.

Axes: G members, T tokens of the longest completion. Source: TEMPO (arXiv:2509.18314), whose
prefix-to-tree values need no critic and no further rollouts. Observations are a function of the
call, so members that make the same decisions share exact prefixes up to the next one.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

END = -1  # in place of an id behind a completion's last token


def branch_values(
    ids: Sequence[Int[np.ndarray, "T"]], rewards: Float[np.ndarray, "G"]
) -> Float[np.ndarray, "G T"]:
    """Returns the rise of the prefix value at every token: ``V(prefix + token) - V(prefix)``.

    The value V of a prefix is the mean reward of the members that begin with it. The value of the
    empty prefix is the mean of the group, and that of a whole completion is its own reward. So the
    rises of a member add up to its reward less the group's mean. The rise is 0 wherever all members
    below a prefix have the same next token: TEMPO's advantage, the group's plus this rise, differs
    from the group's at branches alone.

    Args:
      ids: completion of each member, observations included.
      rewards: of each member. A shift of all of them changes nothing.

    Returns:
      the rises, in units of the reward; 0 behind the end of a completion.

    Example: members 0 and 1 begin with token 4, whose value is (1 + 0) / 2; the group's is 0.
      >>> ids = [np.array([4, 6, 7]), np.array([4, 6, 8]), np.array([5])]
      >>> print(branch_values(ids, np.array([1.0, 0.0, -1.0])))
      [[ 0.5  0.   0.5]
       [ 0.5  0.  -0.5]
       [-1.   0.   0. ]]
    """
    rewards = np.asarray(rewards, np.float32)
    padded = np.full((len(ids), max(map(len, ids), default=0)), END, np.int64)
    for row, completion in zip(padded, ids, strict=True):
        row[: len(completion)] = completion
    rises = np.zeros(padded.shape, np.float32)
    # Each entry is a node of the tree: members that share the first ``start`` tokens.
    nodes = [(np.arange(len(ids)), 0)]
    while nodes:
        members, start = nodes.pop()
        differs = (padded[members, start:] != padded[members[0], start:]).any(axis=0)
        if not differs.any():
            continue  # one member, or equal ones
        branch = start + int(differs.argmax())
        value = rewards[members].mean()
        tokens = padded[members, branch]
        for token in np.unique(tokens):
            below = members[tokens == token]
            if token != END:
                rises[below, branch] = rewards[below].mean() - value
            nodes.append((below, branch + 1))
    return rises
