"""Benchmarks, for maintainers: each writes its figures to ``results`` with ``--json=FILE``.

Flags are defined below ``if __name__ == "__main__"``, because benchmarks share names of flags and
the tests import many benchmarks into one process.
"""
