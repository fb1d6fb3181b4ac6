"""The model that the tests generate with."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model(two_experts) -> Path:
    return two_experts
