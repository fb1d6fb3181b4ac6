"""Stages of other runs: taken over where they are what is asked for, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_bar.cli import main
from megatron_bar.launch.reuse import take_over
from megatron_bar.launch.stale import stale_stages
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import load_recipe
from megatron_bar.stages.provenance import record

TOY = Path(__file__).parents[2] / "examples" / "toy.yaml"


def graph(*overrides):
    return stage_graph(load_recipe(TOY, overrides))


@pytest.fixture
def other(tmp_path) -> Path:
    """A run of the toy as its stages would leave it, with a file in place of what each made."""
    run = tmp_path / "other"
    for stage in graph():
        folder = run / stage.name
        folder.mkdir(parents=True)
        (folder / "made").write_text(stage.name)
        (folder / "stage.json").write_text(
            json.dumps(
                {
                    "id": f"id of {stage.name}",
                    **record(stage),
                    "inputs": {
                        role: {"stage": name, "id": f"id of {name}"}
                        for role, name in stage.inputs.items()
                    },
                }
            )
        )
    store = run / "data" / "chats" / "math-1234"
    store.mkdir(parents=True)
    (store / "tokens.bin").write_bytes(b"1234")
    (store.parent / ".code-5678.partial").mkdir()
    return run


def test_all_but_the_report_is_taken_over_once(other, tmp_path):
    run, stages = tmp_path / "run", graph()
    taken = take_over(stages, run, [other])
    assert taken == [stage.name for stage in stages if stage.KIND != "report"]
    assert [stage.name for stage in stale_stages(stages, run)] == ["report"]
    assert (run / "math" / "sft" / "made").samefile(other / "math" / "sft" / "made")
    assert [path.name for path in (run / "data" / "chats").iterdir()] == ["math-1234"]
    assert take_over(stages, run, [other]) == []


def test_what_a_setting_changes_is_left(other, tmp_path):
    stages = graph("domains.math.sft.lr=1e-3")
    take_over(stages, tmp_path / "run", [other])
    stale = {stage.name for stage in stale_stages(stages, tmp_path / "run")}
    assert stale == {
        "math/sft",
        "math/rlvr",
        "merged",
        "routed",
        "hf",
        "evaluate/math",
        "evaluate/merged",
        "evaluate/routed",
        "report",
    }


def test_what_was_made_of_another_execution_is_left(other, tmp_path):
    own = tmp_path / "run" / "base"
    own.mkdir(parents=True)
    done = json.loads((other / "base" / "stage.json").read_text())
    (own / "stage.json").write_text(json.dumps(done | {"id": "my own"}))
    assert take_over(graph(), tmp_path / "run", [other]) == []


def test_a_half_done_stage_makes_place(other, tmp_path):
    half = tmp_path / "run" / "base"
    half.mkdir(parents=True)
    (half / "begun.json").write_text("{}")
    take_over(graph(), tmp_path / "run", [other])
    assert sorted(path.name for path in half.iterdir()) == ["made", "stage.json"]


def test_disks_without_links_get_copies(other, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    take_over(graph(), tmp_path / "run", [other])
    made = tmp_path / "run" / "base" / "made"
    assert made.read_text() == "base" and not made.samefile(other / "base" / "made")


def test_a_folder_without_a_run_is_refused_before_anything_is_written(tmp_path, capsys):
    assert main(["run", str(TOY), f"runs={tmp_path / 'runs'}", f"reuse=[{tmp_path}]"]) == 1
    assert f"reuse: {tmp_path} is not the folder of a run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
