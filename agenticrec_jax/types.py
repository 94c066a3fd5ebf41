"""Constants shared by the rollout engine, the tools, the agent and the losses.

Every token of a trajectory has one origin. Only ``SAMPLED`` tokens carry a log-prob and a gradient.

Every trajectory has one end, by one of these names. The engine's own:

- ``STOP``: the policy sampled an end of turn or of answer; the only end with an answer to judge;
- ``TOKEN_BUDGET``: the completion has ``max_tokens``, or the next observation would not fit;
- ``CONTEXT_LIMIT``: prompt and completion fill the positions that the model was made for.

The agent's: ``TURN_BUDGET``, ``turn_tokens`` were sampled since the last observation, without a
call; ``TOO_MANY_CALLS``, one call beyond the allowed ones; in training ``UNKNOWN_TOOL`` and
``MALFORMED_CALL``; ``CALLED``, a call where nobody answers any; and in a server ``ABANDONED``, a
call when nobody waits for the answer any more. A tool's own failure ends no trajectory: the policy
reads an error observation in its place, and the call's record has the reason, ``TIMEOUT``,
``RAISED`` or ``JUNK`` (no usable text).
"""

SAMPLED = 1
OBSERVATION = 2

STOP = "stop"
TOKEN_BUDGET = "token_budget"
TURN_BUDGET = "turn_budget"
CONTEXT_LIMIT = "context_limit"
TOO_MANY_CALLS = "too_many_calls"
UNKNOWN_TOOL = "unknown_tool"
MALFORMED_CALL = "malformed_call"
CALLED = "called_a_tool"
ABANDONED = "abandoned"
ENDS = (
    STOP,
    TOKEN_BUDGET,
    TURN_BUDGET,
    CONTEXT_LIMIT,
    TOO_MANY_CALLS,
    UNKNOWN_TOOL,
    MALFORMED_CALL,
    CALLED,
    ABANDONED,
)

TIMEOUT = "timeout"
RAISED = "raised"
JUNK = "junk"
