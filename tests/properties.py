"""Hypothesis as these tests use it: the same examples each time, and nothing kept on disk."""

from __future__ import annotations

from hypothesis import settings

examples = settings(derandomize=True, database=None, deadline=None, max_examples=100)
few = settings(examples, max_examples=40)  # of what takes files
