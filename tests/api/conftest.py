"""Small models that can be talked to, as Hugging Face folders."""

from pathlib import Path

import pytest

from tests.models_hf import TALKING, random_dense, random_experts, talking


@pytest.fixture(scope="session")
def two_talking(tmp_path_factory) -> Path:
    """A model of two experts."""
    return talking(random_experts(2, **TALKING), tmp_path_factory.mktemp("talking") / "hf")


@pytest.fixture(scope="session")
def dense_talking(tmp_path_factory) -> Path:
    return talking(random_dense(**TALKING), tmp_path_factory.mktemp("dense") / "hf")
