"""The tools of each agent in one box: AgenticRec's seven (section 3), RecThinker's five."""

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
    """Profile, item information, behavior and collaborative tools over ``artifacts``.

    With ``profiles`` the first returns what is stored there.
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
    """Profile, history, similar users, item information and the knowledge graph of ``items``."""
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
