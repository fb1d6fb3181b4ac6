"""What tests of several packages share."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_bar.checkpoints.convert import import_hf
from tests.models_hf import random_experts


@pytest.fixture(scope="session")
def two_experts(tmp_path_factory) -> Path:
    """A small model of two experts, in transformers' format (`hf`) and in ours (`checkpoint`)."""
    folder = tmp_path_factory.mktemp("experts")
    random_experts(2).save_pretrained(folder / "hf")
    import_hf(folder / "hf", folder / "checkpoint")
    return folder


@pytest.fixture(scope="session")
def checkpoint(two_experts) -> Path:
    return two_experts / "checkpoint"
