"""What a recipe asks for and can't have is said before anything runs."""

import dataclasses
from pathlib import Path

import pytest

from megatron_bar.launch.check import check_recipe
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import load_recipe
from megatron_bar.recipe.schema import Domain
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.faults import require

TOY = Path(__file__).parents[2] / "examples" / "toy.yaml"


def test_olmo3_runs_as_far_as_the_routed_checkpoint():
    recipe = load_recipe(TOY, ["pretrain.model=olmo3-7b"])
    with pytest.raises(BarError, match=r"no class for OLMo-3 with experts.*set export=false"):
        require(check_recipe(recipe))
    recipe = load_recipe(TOY, ["pretrain.model=olmo3-7b", "export=false"])
    assert check_recipe(recipe) == []
    stages = stage_graph(recipe)
    names = {stage.name for stage in stages}
    assert "hf" not in names and "routed" in names
    assert all(set(stage.inputs.values()) <= names for stage in stages)


def test_validation_sources_are_told_apart():
    twice = 'domains.math.sft.validation=[{"toy":"math"},{"toy":"math"}]'
    with pytest.raises(BarError, match="math/sft: two data sources are called 'math'"):
        require(check_recipe(load_recipe(TOY, [twice])))


def test_a_branch_is_adopted_once(tmp_path):
    (tmp_path / "linked").symlink_to(tmp_path / "branch")
    recipe = load_recipe(TOY)
    adopted = {
        name: Domain(checkpoint=str(tmp_path / folder), routing=[Source(toy=name)])
        for name, folder in (("math", "branch"), ("code", "linked"), ("law", "other"))
    }
    recipe = dataclasses.replace(recipe, domains=recipe.domains | adopted)
    said = [fault.what for fault in check_recipe(recipe) if "one expert" in fault.what]
    assert said == [
        f"domains.math and domains.code have the same checkpoint {tmp_path / 'linked'}"
        ", and a branch is one expert; leave out either"
    ]


@pytest.mark.parametrize(
    "recipe, overrides, message",
    [
        (
            "toy.yaml",
            ["layout.processes=3", "layout.context=3"],
            "rows of 256 tokens can't be shared by layout.context 3; make sequence_length",
        ),
        (
            "toy-rl.yaml",
            ["domains.code.rlvr.layout={processes: 2, context: 2}"],
            "code/rlvr: layout.context is 2; rollouts generate token by token",
        ),
    ],
)
def test_context_ranks_share_rows_of_training_only(recipe, overrides, message):
    with pytest.raises(BarError, match=message):
        require(check_recipe(load_recipe(TOY.with_name(recipe), overrides)))


def test_servers_that_read_exports_need_a_class_that_computes_the_branch():
    recipe = load_recipe(
        TOY.with_name("toy-rl.yaml"),
        [
            "pretrain.model=olmo3-7b",
            "export=false",
            "domains.code.rlvr.rollout_servers=[http://localhost:1]",
            "domains.code.rlvr.rollout_folder=/nowhere",
        ],
    )
    with pytest.raises(BarError, match="code/rlvr: Hugging Face has no class for OLMo-3 with exp"):
        require(check_recipe(recipe))
