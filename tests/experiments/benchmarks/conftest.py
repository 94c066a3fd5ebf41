"""A peer that runs nothing."""

import pytest


class FakePeer:
    """Takes ten CPU seconds for everything, and remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def ask(self, **request):
        self.asked.append(request)
        if request["work"] == "versions":
            return {"name": "them", "size": 7}
        return {"cpu": 10.0, "seconds": 7.0, "sampled": 45, "compilations": 4}


@pytest.fixture
def peer():
    return FakePeer()
