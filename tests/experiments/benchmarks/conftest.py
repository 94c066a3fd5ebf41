"""A peer that runs nothing."""

import pytest


class FakePeer:
    """Answers every request with ten CPU seconds, and records the requests."""

    def __init__(self):
        self.requests = []

    def ask(self, **request):
        self.requests.append(request)
        if request["work"] == "versions":
            return {"name": "them", "size": 7}
        return {"cpu": 10.0, "seconds": 7.0, "sampled": 45, "compilations": 4}


@pytest.fixture
def peer():
    return FakePeer()
