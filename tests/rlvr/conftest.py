"""NeMo-Aligner is imported once, by the server that the tests' ranks are forked from."""

import importlib.util
from pathlib import Path

import pytest

from megatron_bar.launch import processes

if importlib.util.find_spec("nemo_aligner") is not None:
    processes.preload("megatron_bar.rlvr.nemo.preload")


@pytest.fixture(scope="session")
def model(two_experts) -> Path:
    return two_experts
