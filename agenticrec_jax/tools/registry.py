"""Tools of each agent (AgenticRec's seven, RecThinker's five), and how a tool is made by name."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agenticrec_jax.data.interactions import Items
from agenticrec_jax.tools.artifacts import Artifacts
from agenticrec_jax.tools.base import Tool, Toolbox
from agenticrec_jax.tools.behavior import GetRatingBehavior, GetSessionBehavior, GetUserProfile
from agenticrec_jax.tools.collaborative import GetSimilarItems, GetSimilarUsers
from agenticrec_jax.tools.items import CandidatesAnalyze, ItemInfoSearch
from agenticrec_jax.tools.knowledge_graph import knowledge_graph
from agenticrec_jax.tools.profiles import Profiles
from agenticrec_jax.tools.recthinker import (
    SearchItemInfo,
    SearchKnowledgeGraph,
    SearchSimilarUsers,
    SearchUserHistory,
    SearchUserProfile,
)
from agenticrec_jax.tools.text import ToolOptions

TOOLS = {  # classes of each agent's tools, in the order of the prompt
    "agenticrec": (
        GetUserProfile,
        ItemInfoSearch,
        CandidatesAnalyze,
        GetSessionBehavior,
        GetRatingBehavior,
        GetSimilarItems,
        GetSimilarUsers,
    ),
    "recthinker": (
        SearchUserProfile,
        SearchUserHistory,
        SearchSimilarUsers,
        SearchItemInfo,
        SearchKnowledgeGraph,
    ),
}

ARGUMENTS = ("artifacts", "items", "options", "profiles")  # that every program fills by name


def make_tool(make: Callable[..., Tool], values: Mapping[str, Any]) -> Tool:
    """Returns the tool of a class or function, whose parameters are filled by name.

    Args:
      make: the class or function; a parameter of another name than ``values`` has keeps its
        default.
      values: by name, such as those of `ARGUMENTS`.
    """
    return make(**{name: values[name] for name in filled_parameters(make, values)})


def filled_parameters(make: Callable[..., Tool], names: Iterable[str] = ARGUMENTS) -> list[str]:
    """Returns the parameters of a tool's class or function that have one of the names."""
    parameters = inspect.signature(make).parameters
    return [name for name in names if name in parameters]


def agenticrec_tools(
    artifacts: Artifacts, options: ToolOptions | None = None, profiles: Profiles | None = None
) -> Toolbox:
    """Returns AgenticRec's tools: profile, item information, behavior and collaborative ones.

    Args:
      artifacts: fitted values, which limit the examples that the tools can serve.
      options: options of the observations; the defaults if None.
      profiles: stored profiles; without them the profile tool summarizes counts.
    """
    values = {"artifacts": artifacts, "options": options or ToolOptions(), "profiles": profiles}
    return Toolbox([make_tool(tool, values) for tool in TOOLS["agenticrec"]])


def recthinker_tools(
    items: Items,
    artifacts: Artifacts,
    options: ToolOptions | None = None,
    profiles: Profiles | None = None,
) -> Toolbox:
    """Returns RecThinker's tools: profile, history, similar users, item information and graph.

    Args:
      items: the catalog, of which the knowledge graph is made.
      artifacts: fitted values, which limit the examples that the tools can serve.
      options: options of the observations; the defaults if None.
      profiles: stored profiles; without them the profile tool summarizes counts.
    """
    values = {"artifacts": artifacts, "options": options or ToolOptions(), "profiles": profiles}
    values["graph"] = knowledge_graph(items, artifacts)
    return Toolbox([make_tool(tool, values) for tool in TOOLS["recthinker"]])
