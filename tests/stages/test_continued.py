"""A stage that was cut short says what differs when it goes on, or why it starts anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from megatron_bar.cli import main
from megatron_bar.runtime.errors import BarError
from megatron_bar.training.model_run import ModelRun
from megatron_bar.training.saved import saved_steps
from tests.launch.conftest import small_recipe

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def cut_short(tmp_path, monkeypatch, capsys):
    """Runs stage `base` with overrides up to its checkpoint, unwritten; returns what it says."""

    def stop(*args):
        raise BarError("cut short")

    monkeypatch.setattr(ModelRun, "write_checkpoint", stop)
    recipe = small_recipe(tmp_path)
    recipe["pretrain"]["snapshot"] = 1.0
    recipe["pretrain"]["training"] |= {"save_every": 1}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))

    def run(*overrides: str) -> str:
        assert main(["submit", str(tmp_path / "small.yaml"), "--write", "--yes", *overrides]) == 0
        capsys.readouterr()
        assert main(["stage", str(tmp_path / "small"), "base"]) == 1
        shown = capsys.readouterr()
        assert "cut short" in shown.err
        return shown.out

    return run


def _begun_otherwise(stage: Path) -> None:
    """Its last execution was by two processes and another torch."""
    begun = json.loads((stage / "begun.json").read_text())
    begun["layout"]["processes"] = 2
    begun["versions"]["torch"] = "2.0"
    (stage / "begun.json").write_text(json.dumps(begun))


@pytest.mark.slow
def test_what_differs_and_what_follows(cut_short, tmp_path):
    stage = tmp_path / "small" / "base"
    assert "taken over" not in cut_short()
    said = cut_short()
    assert saved_steps(stage) == [3] and "goes on after step 3" in said
    assert "taken over" not in said and "starts anew" not in said

    _begun_otherwise(stage)
    said = cut_short("pretrain.training.micro_batch_size=2", "pretrain.training.log_every=1")
    layout, versions = [line for line in said.splitlines() if "taken over" in line]
    assert layout == (
        "base: the state after step 3 is taken over with layout.processes 1, was 2; "
        "pretrain.training.micro_batch_size 2, was 4: the same batches in the same order, and the "
        "same numbers but for rounding"
    )
    assert (
        versions.startswith(
            "base: the state after step 3 is taken over by other versions (torch 2."
        )
        and ", was 2.0): frozen parameters keep" in versions
    )
    assert "goes on after step 3" in said
    assert "taken over" not in cut_short("pretrain.training.micro_batch_size=2")  # said once


@pytest.mark.slow
@pytest.mark.parametrize(
    "override, why",
    [
        ("pretrain.training.beta1=0.8", "pretrain.training.beta1 is 0.8, was 0.9"),
        ("pretrain.training.data.0.count=90", "pretrain.training.data.0.count is 90, was 100"),
    ],
)
def test_what_decides_starts_it_anew(override, why, cut_short):
    cut_short()
    said = cut_short(override)
    assert f"base: starts anew, and the state after step 3 is removed: {why}\n" in said
    assert "goes on after" not in said
