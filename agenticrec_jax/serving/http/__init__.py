"""Recommendations over HTTP: an ASGI application on a `Recommender`; needs the extra ``serve``."""
