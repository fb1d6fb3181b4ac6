"""Files are named from the recipe's folder, and found from anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_bar.methods.load import load_recipe, load_recipes, save_recipe

RECIPE = """
name: law
anchor: models/anchor
pretrained: allenai/OLMo-2-1124-7B@main
chat_template: own.jinja
reuse: [runs/before]
domains:
  law:
    sft: {epochs: 1, data: [{path: data/a.jsonl}, {path: "data/*.jsonl"}, {hub: org/chats}]}
    tasks: [{path: held.jsonl, verifier: own.py:score}, {path: held.jsonl, verifier: math}]
  math: {checkpoint: branches/math}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    """In a folder beside the one that commands are given in."""
    folder = tmp_path / "recipes"
    for name in ("models/anchor", "data"):
        (folder / name).mkdir(parents=True)
    (folder / "data" / "a.jsonl").touch()
    (folder / "own.jinja").touch()
    (folder / "law.yaml").write_text(RECIPE)
    (tmp_path / "here" / "runs" / "before").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return folder / "law.yaml"


def test_relative_paths_are_those_of_the_recipes_folder(recipe):
    folder, found = recipe.parent, load_recipe(Path("../recipes/law.yaml"))
    assert (found.anchor, found.chat_template) == (
        str(folder / "models/anchor"),
        str(folder / "own.jinja"),
    )
    assert found.pretrained == "allenai/OLMo-2-1124-7B@main"  # of the hub
    sft = found.domains["law"].sft
    assert [source.path or source.hub for source in sft.data] == [
        str(folder / "data/a.jsonl"),
        str(folder / "data/*.jsonl"),
        "org/chats",
    ]
    # where it was expected, though nothing is there
    assert found.domains["law"].tasks[0].path == str(folder / "held.jsonl")
    assert [source.verifier for source in found.domains["law"].tasks] == [
        f"{folder}/own.py:score",
        "math",
    ]
    assert found.domains["math"].checkpoint == str(folder / "branches/math")
    assert found.runs == "runs"  # runs are made where the command is given


def test_what_is_only_in_the_working_directory_is_found_there(recipe, tmp_path):
    (tmp_path / "here" / "held.jsonl").touch()
    (tmp_path / "here" / "org").mkdir()
    found = load_recipe(recipe, ["domains.law.sft.data.2.hub=org"])
    assert found.domains["law"].tasks[0].path == str(tmp_path / "here/held.jsonl")
    assert found.domains["law"].sft.data[2].hub == str(tmp_path / "here/org")
    assert found.reuse == [str(tmp_path / "here/runs/before")]


def test_the_command_line_names_files_from_where_it_is_given(recipe, tmp_path):
    (tmp_path / "here" / "data").mkdir()
    (tmp_path / "here" / "data" / "a.jsonl").touch()
    found = load_recipe(recipe, ["domains.law.sft.data.0.path=data/a.jsonl", "reuse=[runs/other]"])
    assert found.domains["law"].sft.data[0].path == str(tmp_path / "here/data/a.jsonl")
    assert found.reuse == [str(tmp_path / "here/runs/other")]


def test_the_runs_own_recipe_holds_from_anywhere(recipe, tmp_path, monkeypatch):
    found = load_recipe(recipe)
    (tmp_path / "run").mkdir()
    save_recipe(found, tmp_path / "run" / "recipe.yaml")
    monkeypatch.chdir("/")
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == found


def test_home_the_environment_and_other_keys_are_filled_in(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", "/data")
    overrides = [
        f"domains.law.sft.data.{number}.path={path}"
        for number, path in enumerate(("~/a.jsonl", "$DATA/a.jsonl"))
    ]
    found = load_recipe(recipe, [*overrides, "anchor=${HOME}/m", "reuse=['${runs}/${name}-1']"])
    assert [source.path for source in found.domains["law"].sft.data[:2]] == [
        str(tmp_path / "home/a.jsonl"),
        "/data/a.jsonl",
    ]
    assert found.anchor == str(tmp_path / "home/m")
    assert found.reuse == [str(tmp_path / "here/runs/law-1")]


def test_files_are_named_from_the_file_that_says_so(recipe, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "own.jinja").touch()
    (tmp_path / "more" / "b.jsonl").touch()
    more = tmp_path / "more" / "more.yaml"
    more.write_text(
        "extends: ../recipes/law.yaml\nsystems:\n  one: {chat_template: own.jinja}\n"
        "domains: {law: {tasks: [{path: b.jsonl}]}}\n"
    )
    (found,) = load_recipes(more)
    assert found.anchor == str(recipe.parent / "models/anchor")
    assert found.chat_template == str(tmp_path / "more/own.jinja")
    assert found.domains["law"].tasks[0].path == str(tmp_path / "more/b.jsonl")
