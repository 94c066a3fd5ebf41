"""Numbers that the papers and secondary sources print, for the column beside ours.

They are of another protocol (other candidates, another policy, one run), so they are a scale and no
target. Only cells that a source states are here; a cell that is missing was not found.
"""

AGENTICREC = "agenticrec"
RECTHINKER = "recthinker"
PAPERS = {
    AGENTICREC: "AgenticRec (arXiv:2603.21613), Tables 1 and 2",
    RECTHINKER: "RecThinker (arXiv:2603.09843)",
}

# Of AgenticRec by category of Amazon Reviews 2023, row and metric. The rows of the agent are its
# Table 2: R and TIRR, frozen and trained.
CELLS: dict[str, dict[str, dict[str, float]]] = {
    "CDs_and_Vinyl": {
        "sasrec": {"hr@1": 0.0536, "ndcg@5": 0.1413, "ndcg@10": 0.2145},
        "interecagent": {"hr@1": 0.0782, "ndcg@5": 0.1660, "ndcg@10": 0.2392},
        "llara": {"hr@1": 0.2324, "hr@10": 0.7234, "ndcg@5": 0.3736, "ndcg@10": 0.4394},
        "rere": {"hr@1": 0.2073, "ndcg@5": 0.3371, "ndcg@10": 0.4080},
        "frozen_no_tools": {"hr@1": 0.1907, "hr@5": 0.4696, "ndcg@5": 0.3303},
        "frozen": {"hr@1": 0.2331, "hr@5": 0.5476, "ndcg@5": 0.3955},
        "trained_no_tools": {"hr@1": 0.2324, "hr@5": 0.5399, "ndcg@5": 0.3865},
        "rta": {"hr@1": 0.2837, "hr@5": 0.6162, "ndcg@5": 0.4606},
        "rta_ppr": {
            "hr@1": 0.2992,
            "hr@5": 0.6472,
            "hr@10": 0.8093,
            "ndcg@5": 0.4795,
            "ndcg@10": 0.5324,
        },
    },
    "Video_Games": {
        "sasrec": {"hr@1": 0.1535, "ndcg@5": 0.2762, "ndcg@10": 0.3234},
        "interecagent": {"hr@1": 0.1782, "ndcg@5": 0.3009, "ndcg@10": 0.3477},
        "llara": {"hr@1": 0.2763, "ndcg@5": 0.4588, "ndcg@10": 0.4952},
        "rere": {"hr@1": 0.2921, "ndcg@5": 0.4473, "ndcg@10": 0.4976},
        "rta_ppr": {"hr@1": 0.3282, "hr@10": 0.8157, "ndcg@5": 0.4887, "ndcg@10": 0.5445},
    },
    "Musical_Instruments": {
        "frozen_no_tools": {"hr@1": 0.1973, "hr@5": 0.5613, "ndcg@5": 0.3818},
        "frozen": {"hr@1": 0.1948, "hr@5": 0.5277, "ndcg@5": 0.3673},
        "rta_ppr": {
            "hr@1": 0.2586,
            "hr@5": 0.6115,
            "hr@10": 0.8052,
            "ndcg@5": 0.4393,
            "ndcg@10": 0.5021,
        },
    },
    "Office_Products": {
        "rere": {"hr@10": 0.6962, "ndcg@10": 0.4579},
        "rta_ppr": {"hr@10": 0.7773, "ndcg@10": 0.4775},
    },
}
# The embedded log is of the same category, but of the release of 2018.
SAME_CATEGORY = {"office": "Office_Products"}

# Of RecThinker only the gains in NDCG@10 over its best baseline are known. The source does not say
# which set has which; the order is the one in which it names them.
GAINS = {
    "cds_sparse": 0.1171,
    "cds_dense": 0.1057,
    "movielens_sparse": 0.0761,
    "movielens_dense": 0.1179,
}


def paper_numbers(paper: str, log: str) -> dict:
    """Returns the numbers to print beside those of a table.

    Args:
      paper: key of `PAPERS`.
      log: name of the log.

    Returns:
      ``log``, the paper's name of its log, ``cells`` by row and metric, and ``gain`` in NDCG@10
      over the best baseline (None for none). Empty where the paper has no such log.
    """
    if paper == RECTHINKER:
        return {"log": log, "cells": {}, "gain": GAINS[log]} if log in GAINS else {}
    category = SAME_CATEGORY.get(log, log)
    if category not in CELLS:
        return {}
    return {"log": category, "cells": CELLS[category], "gain": None}
