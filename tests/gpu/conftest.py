"""Tests on a GPU, or, where MEGATRON_BAR_TEST_DEVICE is cpu, of these tests themselves on a CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ON_CPU = os.environ.get("MEGATRON_BAR_TEST_DEVICE") == "cpu"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items) -> None:
    runs = ON_CPU or torch.cuda.is_available()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.timeout(600))
            if not runs:
                item.add_marker(
                    pytest.mark.skip(
                        reason="there is no GPU; MEGATRON_BAR_TEST_DEVICE=cpu tries it on a CPU"
                    )
                )


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the project computes in this session."""
    return torch.device("cpu" if ON_CPU else "cuda")


@pytest.fixture(scope="session")
def row_length() -> int:
    """The longest row: on a CPU what takes seconds."""
    return 128 if ON_CPU else 4096
