"""What is written becomes what a key wants, and all that doesn't is reported at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_bar.methods.load import load_recipe, load_recipes, save_recipe
from megatron_bar.runtime.errors import BarError

TOY = Path(__file__).parents[2] / "examples" / "toy.yaml"


@pytest.mark.slow
def test_words_are_text_numbers_and_booleans_as_their_keys_want_them(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"""
extends: {TOY}
name: 1.10
seed: 010
export: on
domains:
  math:
    sft: {{lr: 1e-4, steps: 1e3, global_batch_size: 1_6, save_async: yes, dtype: float32, wandb: no,
          distributed_optimizer: off, lr_scale: {{head: 1}}, megatron: {{bucket_size: 1_000}}}}
    midtrain: {{steps: null, tokens: 1_000_000}}
""")
    recipe = load_recipe(path)
    sft = recipe.domains["math"].sft
    assert (recipe.name, recipe.seed, recipe.export) == ("1.10", 10, True)
    assert (sft.lr, sft.steps, sft.global_batch_size, sft.wandb) == (1e-4, 1000, 16, "no")
    assert (sft.save_async, sft.distributed_optimizer, sft.lr_scale["head"]) == (True, False, 1.0)
    assert recipe.domains["math"].midtrain.tokens == "1_000_000"
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_the_command_line_is_read_by_the_same_rules():
    overrides = [
        "name=2026-11-27",
        "domains.math.sft.lr=1e-3",
        "export=no",
        "domains.math.sft.wandb=on",
        "domains.math.rlvr=null",
        "domains.math.tasks.0.name=*.x",
        "evaluate.opt_out=[math, code]",
    ]
    recipe = load_recipe(TOY, overrides)
    assert recipe.name == "2026-11-27" and recipe.domains["math"].sft.lr == 1e-3
    assert not recipe.export and recipe.domains["math"].sft.wandb == "on"
    assert recipe.domains["math"].tasks[0].name == "*.x"
    assert recipe.domains["math"].rlvr is None and recipe.evaluate.opt_out == ["math", "code"]


def test_a_section_with_nothing_in_it_is_as_if_it_were_not_there(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {TOY}\nname: mine\nroute:\nevaluate:\nreuse:\nlayout:\n")
    toy = load_recipe(TOY)
    mine = load_recipe(path)
    assert (mine.route, mine.evaluate, mine.layout) == (toy.route, toy.evaluate, toy.layout)


def test_null_takes_away_a_domain_an_item_and_a_key_of_a_users_own(tmp_path):
    toy = load_recipe(TOY, ["domains.math.sft.lr_scale={head: 0.5, final_norm: 2}"])
    overrides = [
        "domains.math.sft.lr_scale={head: 0.5, final_norm: 2}",
        "domains.code=null",
        "domains.math.sft.lr_scale.head=null",
        "domains.math.sft.data.0=null",
    ]
    recipe = load_recipe(TOY, overrides)
    assert [*recipe.domains] == [name for name in toy.domains if name != "code"]
    assert recipe.domains["math"].sft.lr_scale == {"final_norm": 2.0}
    assert recipe.domains["math"].sft.data == toy.domains["math"].sft.data[1:]
    again = load_recipe(TOY, [*overrides, "domains.code.sft={steps: 1, data: [{toy: code}]}"])
    assert again.domains["code"].sft.steps == 1 and again.domains["code"].midtrain is None


@pytest.mark.slow
def test_a_file_and_a_system_take_away_what_is_below_them(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"""
extends: {TOY}
name: mine
domains: {{code: null}}
systems: {{whole: , small: {{domains: {{safety: null}}}}}}
""")
    whole, small = load_recipes(path)
    assert {*load_recipe(TOY).domains} - {*whole.domains} == {"code"}
    assert {*whole.domains} - {*small.domains} == {"safety"}
    whole, small = load_recipes(path, ["domains.math=null"])
    assert "math" not in {*whole.domains, *small.domains} and "safety" in whole.domains


@pytest.mark.parametrize(
    "override, message",
    {
        "domains.mth=null": (
            "domains.mth is null, which takes it away, but there is none; did you mean math?"
        ),
        "domains.math.sft.lr_scale.head=null": (
            "domains.math.sft.lr_scale.head is null, which takes it away, but there is none"
        ),
        "domains.math.sft.data.9=null": "domains.math.sft.data has no item 9",
    }.items(),
)
def test_what_is_not_there_is_not_taken_away_silently(override, message):
    with pytest.raises(BarError) as raised:
        load_recipe(TOY, [override])
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_keys_are_added_to_keys_and_a_list_takes_the_place_of_a_list():
    recipe = load_recipe(
        TOY,
        [
            "layout={processes: 4, tensor: 2}",
            "layout={processes: 8}",
            "domains.math.sft.trainable=[head]",
        ],
    )
    assert (recipe.layout.processes, recipe.layout.tensor) == (8, 2)
    assert recipe.domains["math"].sft.trainable == ["head"]


def test_all_faults_of_a_file_are_reported_with_their_lines(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"""extends: {TOY}
naem: mine
seed: many
domains:
  math:
    sft:
      epoch: 2
      data: {{path: x.jsonl}}
      trainable: head
      steps: 1.5
      save_async: maybe
    tasks: [x.jsonl]
route: 3
wandb: project
""")
    with pytest.raises(BarError) as raised:
        load_recipe(path)
    where = f"recipe {path}"
    assert str(raised.value).splitlines() == [
        f"{where}:2: naem: there is no such key; did you mean name?",
        f"{where}:3: seed is 'many' and should be a whole number",
        f"{where}:7: domains.math.sft.epoch: there is no such key; did you mean epochs?",
        f"{where}:8: domains.math.sft.data is a list, and 'path' is not the number of an item; "
        "they are counted from 0",
        f"{where}:9: domains.math.sft.trainable is 'head' and should be a list, as in [head]",
        f"{where}:10: domains.math.sft.steps is '1.5' and should be a whole number",
        f"{where}:11: domains.math.sft.save_async is 'maybe' and should be true or false",
        f"{where}:12: domains.math.tasks.0 is 'x.jsonl' and should be keys, as in {{key: value}}",
        f"{where}:13: route is '3' and should be keys, as in {{key: value}}",
        f"{where}:14: wandb: there is no such key",
    ]


@pytest.mark.parametrize(
    "override, message",
    {
        "seed=": "seed has no value",
        "name=[a]": "name is a list and should be a text",
        "domains.math.sft.lr=nan": "lr is 'nan' and should be a number",
        "domains.math.sft.lr={a: 1}": "lr is keys and should be one value",
        "seed={a: 1, a: 2}": "a is given twice",
        "seed=[": "this is not YAML",
        "domains..sft=1": "is not of the form key=value",
        "layout.procesess=8": "did you mean processes",
        "merge.shares=x": "merge.shares: there is no such key; did you mean shared?",
        "pretrain.training.lr=${nothing}": "Interpolation key 'nothing' not found",
        "name=${oc.env:NO_SUCH_VARIABLE_HERE}": "Environment variable 'NO_SUCH_VARIABLE_HERE'",
    }.items(),
)
def test_a_fault_of_the_command_line_is_one_line(override, message):
    with pytest.raises(BarError) as raised:
        load_recipe(TOY, [override])
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_name_is_asked_for(tmp_path):
    (tmp_path / "r.yaml").write_text("anchor: x\ndomains: {}\n")
    with pytest.raises(BarError, match=r"r\.yaml: name is missing"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/b",
        "..",
        ".",
        "/tmp/x",
        ".hidden",
        "-x",
        "a/../b",
        "'a '",
        "''",
        "a" * 256,
        "ä" * 128,
    ],
)
def test_a_run_stays_in_its_folder(name):
    with pytest.raises(BarError, match="is not the name of one folder"):
        load_recipe(TOY, [f"name={name}"])


def test_a_name_may_be_as_long_as_that_of_a_folder():
    assert load_recipe(TOY, [f"name={'a' * 255}"]).name == "a" * 255


@pytest.mark.slow
def test_only_a_run_itself_is_called_name_and_system(tmp_path):
    recipe = load_recipe(TOY)
    recipe.name = "all/bar"
    run = tmp_path / "all" / "bar"
    run.mkdir(parents=True)
    save_recipe(recipe, run / "recipe.yaml")
    assert load_recipe(run / "recipe.yaml").name == "all/bar"
    save_recipe(recipe, tmp_path / "all" / "recipe.yaml")
    with pytest.raises(BarError, match="'all/bar' is not the name of one folder"):
        load_recipe(tmp_path / "all" / "recipe.yaml")


@pytest.mark.parametrize(
    "name",
    ["slurm", "logs", "before", "evaluate-math", "without-code", "-a", "a.b", "'a b'", "a" * 201],
)
def test_no_domain_is_called_like_something_else_in_the_run(name):
    with pytest.raises(BarError, match="a domain can't be called"):
        load_recipe(TOY, [f"domains={{{name}: {{sft: {{steps: 1, data: [{{toy: math}}]}}}}}}"])
