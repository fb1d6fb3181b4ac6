"""The server that the tests' ranks are forked from imports what the default backend needs."""

from pathlib import Path

import pytest

from megatron_bar.launch import processes
from megatron_bar.rlvr.backends import backend_of

if module := backend_of(None).PRELOAD:
    processes.preload(module)


@pytest.fixture(scope="session")
def model(two_experts) -> Path:
    return two_experts
