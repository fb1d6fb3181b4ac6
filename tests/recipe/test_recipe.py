"""Recipes: what is asked for becomes stages, and what is wrong gets one line."""

import dataclasses
from pathlib import Path

import pytest

from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import load_recipe, save_recipe
from megatron_bar.recipe.schema import Evaluate
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.context import identity
from megatron_bar.stages.stage import Stage
from megatron_bar.stages.training_stage import TrainingStage

TOY = Path(__file__).parents[2] / "examples" / "toy.yaml"


@pytest.mark.slow
def test_the_toy_graph():
    stages = stage_graph(load_recipe(TOY))
    names = [stage.name for stage in stages]
    assert names[:3] == ["base", "anchor", "pretrained"]
    for domain, steps in {
        "math": ["branch", "midtrain", "sft", "rlvr"],
        "code": ["branch", "midtrain", "sft", "rlvr"],
        "tool_use": ["branch", "sft"],
        "safety": ["branch", "sft"],
    }.items():
        assert [n for n in names if n.startswith(f"{domain}/")] == [f"{domain}/{s}" for s in steps]
    by_name = {stage.name: stage for stage in stages}
    assert by_name["merged"].inputs == {
        "anchor": "anchor",
        "math": "math/rlvr",
        "code": "code/rlvr",
        "tool_use": "tool_use/sft",
        "safety": "safety/sft",
    }
    assert by_name["hf"].inputs == {"checkpoint": "routed"}
    done = set()
    for stage in stages:  # each after those it needs
        assert set(stage.inputs.values()) <= done
        done.add(stage.name)


def test_defaults_are_the_recipe_of_bar():
    recipe = load_recipe(TOY, ["domains.tool_use.sft.trainable=[]"])
    by_name = {stage.name: stage for stage in stage_graph(recipe)}
    trainable = {
        name: stage.training.trainable
        for name, stage in by_name.items()
        if isinstance(stage, TrainingStage)
    }
    assert trainable["math/midtrain"] == ["expert.1", "router.1"]
    assert trainable["tool_use/sft"] == ["expert.1", "router.1", "embeddings", "head", "final_norm"]
    assert trainable["routed"] == ["router.*"]


def test_overrides_reach_every_depth_and_survive_saving(tmp_path):
    recipe = load_recipe(
        TOY,
        [
            "route.fraction=0.1",
            "domains.math.sft.lr_scale.head=0.5",
            "layout.processes=2",
            "seed=3",
        ],
    )
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert recipe.route.fraction == 0.1 and recipe.domains["math"].sft.lr_scale["head"] == 0.5


def test_overrides_reach_into_lists():
    plain = load_recipe(TOY).domains["math"].sft
    sft = (
        load_recipe(
            TOY,
            [
                "domains.math.sft.data.1.count=20",
                "domains.math.sft.data.1.name=small",
                "domains.math.sft.trainable.0=expert.*",
            ],
        )
        .domains["math"]
        .sft
    )
    assert sft.data == [plain.data[0], dataclasses.replace(plain.data[1], count=20, name="small")]
    assert sft.trainable == ["expert.*", "router.1"]
    replaced = (
        load_recipe(TOY, ["domains.math.sft.data=[{toy: code}]", "domains.math.sft.data.0.count=3"])
        .domains["math"]
        .sft
    )
    assert replaced.data == [Source(toy="code", count=3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "override, message",
    {
        "rout.fraction=0.1": "rout",
        "route.fraktion=0.1": "fraktion",
        "domains.math.sft.learning_rate=1": "learning_rate",
        "seed=many": "many",
        "route.fraction=2": "not in",
        "layout.processes=3 layout.tensor=2": "multiple of 2",
        "domains.math.sft.steps=-1": "sft: steps -1 is not at least 1",
        "domains.math.sft.steps=0 domains.math.sft.warmup_steps=4": (
            "sft: steps 0 is not at least 1"
        ),
        "domains.math.sft.warmup_steps=-4": "sft: warmup_steps -4 is not 0 or more",
        "domains.math.sft.steps=3 domains.math.sft.warmup_steps=4": (
            "warmup_steps 4 is more than the 3 steps"
        ),
        "route.load_balancing_loss=-1": "route.load_balancing_loss -1.0 is not 0 or more",
        "domains.math.sft.schedule=cubic": "cubic",
        "domains.math.sft.epochs=1": "one of steps, epochs and tokens",
        "domains.math.sft.tokens=50B": "one of steps, epochs and tokens",
        "domains.math.sft.steps=null domains.math.sft.tokens=many": "sft: tokens 'many' is not",
        "domains.math.sft.data.2.count=7": "sft.data has no item 2; there are 2, counted from 0",
        "domains.math.sft.data.last.count=7": (
            "sft.data is a list, and 'last' is not the number of an"
        ),
        "domains.math.sft.data.0.cuont=7": "data.0.cuont: there is no such key; did you mean count",
        "domains.math.sft.data.0=math": "data.0 is 'math' and should be keys",
        'pretrain.chat=[{"toy":"general","weight":2}]': "by count, not by weight",
        'pretrain.training.validation=[{"toy":"math"}]': "pretrain has no validation",
        'domains.math.sft.validation=[{"toy":"math","repeat":2}]': "reads each source once",
        "domains.math.sft.overlong=split": "overlong 'split' is not truncate or drop",
        "anchor=some/folder": "either anchor",
        "route": "not of the form",
        'domains.merged.sft.steps=1 domains.merged.sft.data=[{"toy":"math"}]': (
            "can't be called 'merged'"
        ),
        "domains.law.sft.steps=1": "domains.law.sft: data is empty",
    }.items(),
)
def test_a_wrong_key_or_value_gets_one_line(override, message):
    with pytest.raises(BarError, match=message) as raised:
        load_recipe(TOY, override.split())
    assert "\n" not in str(raised.value)


def test_a_missing_or_broken_recipe_gets_one_line(tmp_path):
    with pytest.raises(BarError, match="doesn't exist"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("name: [")
    with pytest.raises(BarError, match=r"broken\.yaml"):
        load_recipe(tmp_path / "broken.yaml")


@pytest.mark.slow
def test_an_evaluation_goes_stale_by_what_decides_its_answers_alone():
    """Keys at their default leave stages done that were done before there were such keys."""

    def evaluation(*overrides: str) -> Stage:
        stages = stage_graph(load_recipe(TOY, overrides))
        return next(stage for stage in stages if stage.name == "evaluate/routed")

    before = evaluation()
    assert before.asking == Evaluate(max_new_tokens=40)
    spread = evaluation("evaluate.layout={processes: 2, tensor: 2}")
    assert spread.layout.tensor == 2 and identity(spread) == identity(before)
    for override in ("evaluate.temperature=0.7", "evaluate.dtype=bfloat16"):
        assert identity(evaluation(override)) != identity(before)
    drawn = evaluation("evaluate.temperature=0.7", "evaluate.samples=4").asking
    assert (drawn.temperature, drawn.samples) == (0.7, 4)
