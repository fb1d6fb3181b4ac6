"""What tests of several packages share."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from transformers.utils import logging

from tests.models_hf import imported, random_experts


def pytest_collection_modifyitems(config, items) -> None:
    """Begin with the files whose tests may take longest; last come those without ranks, the quick
    ones at the very end.

    Files are shared out in this order, so that no core waits for a long one at the end. A limit
    below the usual one tells what a test may wait for, not that its file is short.
    """
    usual = float(config.getini("timeout"))
    limits, work = defaultdict(lambda: usual), defaultdict(int)
    for item in items:
        if limit := item.get_closest_marker("timeout"):
            limits[item.path] = max(limits[item.path], limit.args[0])
        for kind, marker in enumerate(("slow", "distributed"), 1):
            if item.get_closest_marker(marker):
                work[item.path] = max(work[item.path], kind)
    items.sort(key=lambda item: (limits[item.path], work[item.path]), reverse=True)


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
