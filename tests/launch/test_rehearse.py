"""Whole rehearsals, in real ranks, to an export that transformers generates with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.cli import main
from megatron_bar.data.chat import TEMPLATES
from megatron_bar.launch import local_scheduler
from megatron_bar.methods.run import run_stage
from megatron_bar.stages.work import train
from tests.launch.conftest import small_recipe
from tests.launch.sample_data import SHARED, write_sample_data, write_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
# The published recipes go through every kind of stage once.
# The larger ones differ from the 7B's in sizes and layouts alone, so a domain each will do.
_KEPT = {
    "bar-7b": ("math", "code", "safety", "tool_use"),
    "bar-13b": ("tool_use",),
    "bar-32b": ("math",),
}


def _one_domain(runs: Path) -> dict[str, Any]:
    recipe = small_recipe(runs)
    del recipe["domains"]["tool_use"]
    return recipe


def _written(folder: Path, recipe: dict[str, Any]) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data isn't beside the project")
@pytest.mark.parametrize("example", _KEPT)
def test_the_published_recipes_are_rehearsed_with_sample_data(
    example, tmp_path, monkeypatch, capsys
):
    recipe = yaml.safe_load((EXAMPLES / f"{example}.yaml").read_text())
    recipe["domains"] = {name: recipe["domains"][name] for name in _KEPT[example]}
    if len(recipe["domains"]) < 4:
        recipe["route"]["training"]["layout"]["expert"] = len(recipe["domains"]) + 1
    write_sample_data(tmp_path / "data")
    write_tokenizer(tmp_path / "tokenizer", TEMPLATES["olmo"])
    monkeypatch.chdir(tmp_path)
    path = _written(tmp_path, recipe)
    assert main(["rehearse", path, "--tokenizer", "tokenizer"]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    print(said)
    assert "no faults; the recipe is ready to run" in said
    assert "frozen parameters bit-identical" in said and "its chat template renders" in said
    for name in {"math", "code"} & set(recipe["domains"]):
        rewarded = re.search(rf"{name}_prompts: (\d+) of (\d+) reference answers", said)
        assert rewarded and rewarded[1] == rewarded[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "recipe.yaml", "tokenizer"]


def test_a_recipe_that_makes_its_own_base(tmp_path, capsys):
    recipe = _written(tmp_path, _one_domain(tmp_path / "runs"))
    assert main(["rehearse", recipe, "--keep", str(tmp_path / "kept")]) == 0
    said = capsys.readouterr().out
    assert "no faults" in said and "transformers loads it" in said
    assert (tmp_path / "kept" / "small-rehearsal" / "hf" / "model" / "config.json").is_file()
    assert not (tmp_path / "runs").exists()


def run_stage_in_half(run: Path, name: str) -> None:
    """As a rank: `math/sft` writes what it should in numbers of another type."""
    prove = train.proof_of_freezing

    def spoilt(context, *arguments):
        checkpoint = context.folder / "checkpoint"
        half = context.folder / "half"
        export_hf(checkpoint, half, torch.float16)
        import_hf(half, checkpoint, overwrite=True)
        return prove(context, *arguments)

    if name == "math/sft":
        train.proof_of_freezing = spoilt
    run_stage(run, name)


def test_a_stage_that_changes_the_type_of_frozen_tensors(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(local_scheduler, "run_stage", run_stage_in_half)
    recipe = _written(tmp_path, _one_domain(tmp_path / "runs"))
    assert main(["rehearse", recipe]) == 1
    said = capsys.readouterr()
    (fault,) = [line for line in said.out.splitlines() if line.startswith("fault: ")]
    assert fault.startswith("fault: stage math/sft: ") and "changed" in fault
    assert "the recipe isn't ready to run; faults: 1" in said.err
