"""Toolbox of each agent: AgenticRec's seven tools (section 3), RecThinker's five."""

from agenticrec_jax.data.interactions import Items
from agenticrec_jax.tools.artifacts import Artifacts
from agenticrec_jax.tools.base import Toolbox
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


def agenticrec_tools(
    artifacts: Artifacts, options: ToolOptions | None = None, profiles: Profiles | None = None
) -> Toolbox:
    """Returns AgenticRec's tools: profile, item information, behavior and collaborative ones.

    Args:
      artifacts: fitted values, which limit the examples that the tools can serve.
      options: options of the observations; the defaults if None.
      profiles: stored profiles; without them the profile tool summarizes counts.
    """
    options = options or ToolOptions()
    return Toolbox(
        [
            GetUserProfile(options, profiles),
            ItemInfoSearch(artifacts, options),
            CandidatesAnalyze(artifacts, options),
            GetSessionBehavior(options),
            GetRatingBehavior(options),
            GetSimilarItems(artifacts, options),
            GetSimilarUsers(artifacts, options),
        ]
    )


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
    options = options or ToolOptions()
    return Toolbox(
        [
            SearchUserProfile(options, profiles),
            SearchUserHistory(options),
            SearchSimilarUsers(artifacts, options),
            SearchItemInfo(artifacts, options),
            SearchKnowledgeGraph(knowledge_graph(items, artifacts), options),
        ]
    )
