"""Stratified groups: members that begin with a forced first call, each of another tool.

A policy that has settled on one tool hardly samples the others, so it does not learn what to do
with their evidence. Forced calls show it. They do not teach the call itself, which has no gradient:
that choice learns from the free members alone. Source: the mirror image of EAPO (arXiv:2606.02132),
which puts tool-free members into each group.
"""

from collections.abc import Sequence

from agenticrec_jax.agent import protocol
from agenticrec_jax.agent.prompts import PromptBuilder


def forced_openings(
    prompts: PromptBuilder, tools: Sequence[str], *, members: int, forced: int, step: int
) -> tuple[tuple[int, ...], ...]:
    """Returns the ids that each member of a group begins with: a first call up to its arguments.

    The first ``forced`` members call the tools in turn, each another one while there are enough;
    the others decide themselves. A step begins with the tool after the last of the step before. The
    policy writes the call's arguments. Forced ids have the origin of observations, so they carry no
    gradient.

    Args:
      prompts: encode the call as the policy would write it.
      tools: their names; without any no call can be forced.
      members: G.
      forced: members whose first call is forced, at most G.
      step: of the training.

    Example, three members and two tools in step 3:
      >>> from agenticrec_jax.agent.prompts import make_prompts
      >>> from agenticrec_jax.testing.world import tiny_world
      >>> world = tiny_world()
      >>> prompts = make_prompts(world.tokenizer, world.log.items, title_tokens=4)
      >>> openings = forced_openings(
      ...     prompts, ["get_user_profile", "get_similar_users"], members=3, forced=1, step=3)
      >>> [world.tokenizer.decode(ids) for ids in openings]
      ['<think></think><tool_call>{"name":"get_similar_users","arguments":{', '', '']
    """
    if not tools:
        return ()
    names = [tools[(step * forced + member) % len(tools)] for member in range(forced)]
    # Behind the name of a tool that it has not seen, a policy does not know how a call goes on.
    begun = "<think></think>" + protocol.CALL_OPEN
    texts = [f'{begun}{{"name":"{name}","arguments":{{' for name in names]
    return tuple(tuple(prompts.written(text)) for text in texts) + ((),) * (members - forced)
