"""A small finished run of two domains, to route anew and to upgrade; tests take copies of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from megatron_bar.cli import main

_TRAINING = dict(sequence_length=96, global_batch_size=8, micro_batch_size=4, lr=3e-3, log_every=2)


def sft(domain: str, **more) -> dict:
    return {
        "sft": {
            **_TRAINING,
            "steps": 4,
            "data": [
                {"toy": domain, "count": 80},
                {"toy": "general", "count": 40},
            ],
            **more,
        },
        "tasks": [{"toy": domain, "split": "heldout", "count": 4}],
    }


def small_recipe(runs: Path, name: str = "small") -> dict:
    return {
        "name": name,
        "runs": str(runs),
        "pretrain": {
            "vocab_size": 600,
            "chat": [{"toy": "general", "count": 200}],
            "training": dict(
                **_TRAINING,
                steps=4,
                data=[{"toy": "general", "count": 100, "name": "prose"}],
            ),
        },
        "domains": {"math": sft("math"), "tool_use": sft("tool_use")},
        "route": {"fraction": 0.25, "training": dict(**_TRAINING, steps=3)},
        "evaluate": {
            "general": [{"toy": "general", "split": "heldout", "count": 4}],
            "max_new_tokens": 8,
        },
    }


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Path:
    """The run's folder. Nobody writes into it."""
    runs = tmp_path_factory.mktemp("finished")
    (runs / "small.yaml").write_text(yaml.safe_dump(small_recipe(runs)))
    assert main(["run", str(runs / "small.yaml")]) == 0
    return runs / "small"


@pytest.fixture
def run(small_run, tmp_path) -> Path:
    """A run that a test may change."""
    shutil.copytree(small_run, tmp_path / "small")
    return tmp_path / "small"
