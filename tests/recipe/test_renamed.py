"""Former names of keys are understood, with a hint, wherever a recipe can be written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megatron_bar.methods.load import load_recipe, load_recipes, save_recipe
from megatron_bar.recipe.renamed import renamed, tell_renamed
from megatron_bar.recipe.training import Rlvr, RouteTraining, Training
from megatron_bar.runtime.errors import BarError

TOY = Path(__file__).parents[2] / "examples" / "toy.yaml"


@pytest.fixture(autouse=True)
def _as_in_a_new_process():
    tell_renamed.cache_clear()


@pytest.fixture
def former(tmp_path) -> Path:
    """A recipe in the words of the version before."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"""extends: {TOY}
domains:
  math:
    sft: {{floor: 0.25}}
    rlvr: {{floor: 0.5, drop_equal: false, rest_above: 0.75}}
""")
    return path


def test_a_file_with_former_names_is_read_with_a_hint_for_each(former, capsys):
    math = load_recipe(former).domains["math"]
    assert (math.sft.min_lr_ratio, math.rlvr.min_lr_ratio) == (0.25, 0.5)
    assert (math.rlvr.filter_zero_std, math.rlvr.no_resampling_pass_rate) == (False, 0.75)
    warnings = capsys.readouterr().err.splitlines()
    assert warnings == [
        f"megatron-bar: recipe {former}:4: floor is called min_lr_ratio now; the next version will "
        "refuse floor",
        f"megatron-bar: recipe {former}:5: drop_equal is called filter_zero_std now; the next "
        "version will refuse drop_equal",
        f"megatron-bar: recipe {former}:5: rest_above is called no_resampling_pass_rate now; the "
        "next version will refuse rest_above",
    ]
    load_recipe(former)
    assert capsys.readouterr().err == ""  # once is enough


@pytest.mark.slow
def test_what_is_written_has_the_present_names(former, tmp_path, capsys):
    recipe = load_recipe(former)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    capsys.readouterr()
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert capsys.readouterr().err == ""


def test_the_layers_of_a_recipe_may_use_either_name(former, capsys):
    assert (
        load_recipe(former, ["domains.math.sft.min_lr_ratio=0.1"]).domains["math"].sft.min_lr_ratio
        == 0.1
    )
    capsys.readouterr()
    assert load_recipe(TOY, ["domains.math.sft.floor=0.3"]).domains["math"].sft.min_lr_ratio == 0.3
    assert "command line: floor is called min_lr_ratio now" in capsys.readouterr().err


@pytest.mark.parametrize(
    "former, of_section",
    {
        "domains.math.sft.batch_size=12": ("global_batch_size", 12),
        "domains.math.rlvr.batch_size=48": ("global_batch_size", 48),
        "domains.math.sft.warmup=0.5": ("warmup_ratio", 0.5),
        "domains.math.sft.clip=0.25": ("max_grad_norm", 0.25),
        "route.active=2": ("experts_per_token", 2),
        "route.load_balancing=0.5": ("load_balancing_loss", 0.5),
        "domains.math.rlvr.verifiers_at_once=3": ("verifier_workers", 3),
    }.items(),
)
def test_each_former_name_sets_what_it_is_called_now(former, of_section, capsys):
    present, value = of_section
    *section, name = former.partition("=")[0].split(".")
    recipe = load_recipe(TOY, [former], values=False)
    settings = {"domains": recipe.domains["math"], "route": recipe}[section[0]]
    assert getattr(getattr(settings, section[-1]), present) == value
    assert f"command line: {name} is called {present} now" in capsys.readouterr().err


def test_systems_may_use_former_names(former):
    former.write_text(former.read_text() + "systems: {one: {route: {training: {floor: 0.2}}}}\n")
    (one,) = load_recipes(former)
    assert one.route.training.min_lr_ratio == 0.2


def test_both_names_at_once_are_refused(former):
    former.write_text(former.read_text().replace("floor: 0.25", "floor: 0.25, min_lr_ratio: 0.3"))
    with pytest.raises(
        BarError,
        match=r"mine.yaml:4: domains.math.sft.floor is called "
        "min_lr_ratio now, which is given, too; leave floor out",
    ):
        load_recipe(former)


def test_a_former_name_is_no_present_one():
    for schema in (Training, Rlvr, RouteTraining):
        assert renamed(schema)["floor"] == "min_lr_ratio"
        assert not renamed(schema).keys() & {field.name for field in dataclasses.fields(schema)}
