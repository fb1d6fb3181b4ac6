"""Hugging Face folders of small random models."""

import pytest

from tests.models_hf import random_dense, random_experts


@pytest.fixture(scope="session")
def dense_hf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense") / "hf"
    random_dense(seed=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_dense_hf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other") / "hf"
    random_dense(seed=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def experts_hf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts") / "hf"
    random_experts(3).save_pretrained(folder, max_shard_size="100KB")
    return folder
