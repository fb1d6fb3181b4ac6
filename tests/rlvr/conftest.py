"""NeMo-Aligner is imported once, by the server that the tests' ranks are forked from."""

import importlib.util
from pathlib import Path

import pytest

from megatron_bar.checkpoints.convert import import_hf
from megatron_bar.launch import processes
from tests.models_hf import random_experts

if importlib.util.find_spec("nemo_aligner") is not None:
    processes.preload("megatron_bar.rlvr.nemo.preload")


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A folder with a small model of two experts, as `hf` and as `checkpoint`."""
    folder = tmp_path_factory.mktemp("experts")
    random_experts(2).save_pretrained(folder / "hf")
    import_hf(folder / "hf", folder / "checkpoint")
    return folder
