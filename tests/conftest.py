"""What tests of several packages share."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from transformers.utils import logging

from tests.models_hf import imported, random_experts


def pytest_collection_modifyitems(config, items) -> None:
    """Begin with the files whose tests may take longest, and end with those that start no ranks.

    Files are shared out in this order, so that no core waits for a long one at the end.
    """
    limits, starts_ranks = defaultdict(float), defaultdict(bool)
    for item in items:
        limit = item.get_closest_marker("timeout")
        limits[item.path] = max(
            limits[item.path], limit.args[0] if limit else float(config.getini("timeout"))
        )
        starts_ranks[item.path] |= item.get_closest_marker("distributed") is not None
    items.sort(key=lambda item: (limits[item.path], starts_ranks[item.path]), reverse=True)


@pytest.fixture(scope="session")
def two_experts(tmp_path_factory) -> Path:
    """A small model of two experts, in transformers' format (`hf`) and in ours (`checkpoint`)."""
    folder = tmp_path_factory.mktemp("experts")
    imported(random_experts(2), folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(two_experts) -> Path:
    return two_experts / "checkpoint"


@pytest.fixture
def said_by_transformers(caplog):
    """The log, with what transformers says, which it keeps to itself otherwise."""
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()
