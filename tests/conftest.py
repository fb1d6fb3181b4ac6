"""What tests of several packages share."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers.utils import logging

from tests.models_hf import imported, random_experts


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
