"""Constants shared by the rollout engine, the agent and the losses.

Every token of a trajectory has one origin. Only ``SAMPLED`` tokens carry a log-prob and a gradient.
"""

PROMPT = 0
SAMPLED = 1
OBSERVATION = 2
