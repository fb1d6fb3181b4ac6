"""Nothing that is finished is lost by a slip: it is kept, named, priced, and asked for."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from megatron_bar.cli import main
from megatron_bar.launch.replacing import confirm_replacing, training_lost
from megatron_bar.launch.stale import stale_stages
from megatron_bar.launch.work import work_of
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import load_recipe
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import write_json
from megatron_bar.stages.context import read_done, replaced_folder
from megatron_bar.stages.provenance import record
from megatron_bar.training.groups import group_digests

pytestmark = pytest.mark.slow

HOURS = 7200.0  # that a stage took


def again(run: Path, *words: str) -> int:
    return main(["run", str(run / "recipe.yaml"), f"runs={run.parent}", *words])


def costly(run: Path, *stages: str) -> None:
    """Stages that took two hours of one process each."""
    for stage in stages:
        path = run / stage / "stage.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": HOURS}))


def state(run: Path) -> dict[Path, int]:
    """When what is in a run was last changed, but for the lock of who looks at it."""
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}


@pytest.mark.parametrize(
    "override, message",
    {
        "domains.math.sft.data.0={path: law_chta.jsonl, toy: null}": "law_chta.jsonl is not a file",
        "chat_template=chatml": "chat_template 'chatml' is unknown",
        "domains.math.tasks.0.verifier=exactly": "tasks of math: verifier 'exactly' is unknown",
        "domains.math.sft.lr=-1": "domains.math.sft: lr -1.0 is not 0 or more",
        "domains.math.sft.global_batch_size=7": "math/sft: global_batch_size 7 can't be shared by",
    }.items(),
)
def test_a_typo_touches_nothing(override, message, run, capsys):
    before = state(run)
    assert again(run, override, "--yes") == 1
    shown = capsys.readouterr().err
    assert message in shown and len(shown.strip().splitlines()) == 1
    assert state(run) == before


def test_training_that_took_long_is_replaced_only_where_that_is_meant(run, capsys):
    """Without a terminal --yes means it; each stage's old result stays until the new one stands."""
    costly(run, "math/sft", "routed")
    before = state(run)
    assert again(run, "domains.math.sft.lr=0.002") == 1
    (shown,) = capsys.readouterr().err.strip().splitlines()
    assert shown == (
        "megatron-bar: this would replace 4.0 GPU-hours of training: math/sft "
        "(domains.math.sft.lr is 0.002, was 0.003; 4 steps, 2.0 GPU-hours); routed (merged is made "
        "anew; 3 steps, 2.0 GPU-hours); give --yes if that is meant (replace=True "
        "in Python), or the run another name"
    )
    assert state(run) == before

    digests = group_digests(run / "math" / "sft" / "checkpoint")
    assert again(run, "domains.math.sft.lr=1e30", "--yes") == 1
    shown = capsys.readouterr()
    kept = run / "replaced" / "math" / "sft"
    assert "math/sft: the loss is not a number" in shown.err
    assert f"math/sft: failed; its last result is kept in {kept}" in shown.out
    assert group_digests(kept / "checkpoint") == digests and read_done(run / "routed") is not None
    assert main(["status", str(run)]) == 0
    assert "its last result is in replaced/math/sft" in capsys.readouterr().out

    assert again(run, "domains.math.sft.lr=0.003") == 0
    shown = capsys.readouterr().out
    assert f"1 stages are taken over from {run / 'replaced'}: math/sft" in shown
    assert "nothing to do, all" in shown
    assert group_digests(run / "math" / "sft" / "checkpoint") == digests
    assert not (run / "replaced").exists()

    assert again(run, "domains.math.sft.lr=0.002", "--yes") == 0
    assert "trained anew: math/sft (domains.math.sft.lr is 0.002" in capsys.readouterr().out
    assert group_digests(run / "math" / "sft" / "checkpoint") != digests
    assert not (run / "replaced").exists()


def test_a_kill_after_the_new_result_leaves_no_old_one_for_long(run, capsys):
    shutil.copytree(run / "math" / "sft", replaced_folder(run, "math/sft"))
    assert again(run) == 0
    assert "nothing to do" in capsys.readouterr().out and not (run / "replaced").exists()


def test_what_was_removed_on_purpose_asks_nothing(run):
    costly(run, "math/sft", "tool_use/sft", "routed")
    recipe = load_recipe(run / "recipe.yaml", [f"runs={run.parent}"])
    shutil.rmtree(run / "math")
    work = work_of(recipe)
    assert {"math/sft", "routed"} < set(work.names) and work.lost == []


def test_conversions_and_evaluations_ask_nothing(run):
    costly(run, "merged", "hf", "evaluate/routed", "anchor")
    recipe = load_recipe(
        run / "recipe.yaml",
        [f"runs={run.parent}", "merge.shared=branches", "evaluate.max_new_tokens=9"],
    )
    (loss,) = work_of(recipe).lost
    assert (loss.stage, loss.why) == (
        "routed",
        "merged is made anew: merge.shared is branches, was published",
    )
    confirm_replacing([loss], yes=False)  # in a test it takes seconds


@pytest.fixture
def imported(tmp_path) -> Path:
    """A recipe of two models that it imports, and all of its stages as a finished run has them."""
    for model in ("anchor", "pretrained"):
        (tmp_path / model).mkdir()
        for name in ("config.json", "generation_config.json"):
            (tmp_path / model / name).write_text(f'{{"of": "{model}"}}')
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    training = {"steps": 4, "global_batch_size": 2, "data": [{"path": "texts.jsonl"}]}
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "law",
                "runs": str(tmp_path / "runs"),
                "anchor": "anchor",
                "pretrained": "pretrained",
                "route": {"training": {"steps": 3}},
                "domains": {"law": {"midtrain": training, "sft": training}},
            }
        )
    )
    for stage in stage_graph(load_recipe(path)):
        folder = tmp_path / "runs" / "law" / stage.name
        folder.mkdir(parents=True)
        inputs = {role: {"stage": name, "id": name} for role, name in stage.inputs.items()}
        write_json(
            folder / "stage.json",
            record(stage) | {"id": stage.name, "inputs": inputs, "steps": 4, "seconds": HOURS},
        )
    return path


@pytest.mark.parametrize("model", ["anchor", "pretrained"])
def test_a_file_of_a_model_is_named_though_its_import_trains_nothing(model, imported):
    recipe = load_recipe(imported)
    assert work_of(recipe).todo == []
    changed = imported.parent / model / "generation_config.json"
    changed.write_text("{}")
    assert [(loss.stage, loss.why) for loss in work_of(recipe).lost] == [
        ("law/midtrain", f"law/branch is made anew: {changed} has other contents ({model})"),
        ("law/sft", "law/midtrain is made anew"),
        (
            "routed",
            "merged is made anew"
            + (f": {changed} has other contents (anchor)" if model == "anchor" else ""),
        ),
    ]


@pytest.mark.parametrize(
    "override, root",
    {
        "pretrained=null": "pretrained is left out",
        "pretrained=anchor": "pretrained is FOLDER/anchor, was FOLDER/pretrained",
        "seed=7": "seed is 7, was 0",
    }.items(),
)
def test_a_key_is_named_though_only_a_conversion_reads_it(override, root, imported, monkeypatch):
    monkeypatch.chdir(imported.parent)
    lost = work_of(load_recipe(imported, [override])).lost
    whys = [loss.why.replace(str(imported.parent), "FOLDER") for loss in lost]
    assert any(why.endswith(root) for why in whys) and lost[0].stage == "law/midtrain"


def test_a_saved_state_is_training_too(run):
    """Of a stage that was cut short."""
    (run / "math" / "sft" / "stage.json").unlink()
    overrides = [f"runs={run.parent}", "domains.math.sft.lr=0.002"]
    lost = work_of(load_recipe(run / "recipe.yaml", overrides)).lost
    assert "math/sft" not in [loss.stage for loss in lost]
    (run / "math" / "sft" / "resume" / "3").mkdir(parents=True)
    lost = work_of(load_recipe(run / "recipe.yaml", overrides)).lost
    assert "math/sft (domains.math.sft.lr is 0.002, was 0.003; 3 steps, cut short, " in str(lost[0])
    assert work_of(load_recipe(run / "recipe.yaml", overrides[:1])).lost == []


def test_an_upgrade_asks_for_what_isnt_its_own(run, capsys):
    costly(run, "math/sft", "tool_use/sft", "routed")
    before = state(run)
    assert main(["upgrade", str(run), "--drop", "tool_use", "domains.math.sft.lr=0.002"]) == 1
    (shown,) = capsys.readouterr().err.strip().splitlines()
    assert "this would replace 2.0 GPU-hours of training: math/sft (domains.math.sft.lr" in shown
    assert state(run) == before
    assert main(["upgrade", str(run), "--drop", "tool_use", "--prepare"]) == 0
    recipe = load_recipe(run / "recipe.yaml")
    assert "routed" in {stage.name for stage in stale_stages(stage_graph(recipe), run)}
    assert work_of(recipe).lost == []  # the router of before stands in RUN/before


@pytest.mark.parametrize("answer, agreed", [("y", True), ("", False), ("n", False)])
def test_on_a_terminal_the_user_is_asked(run, answer, agreed, monkeypatch, capsys):
    costly(run, "routed")
    recipe = load_recipe(run / "recipe.yaml", [f"runs={run.parent}", "route.fraction=0.5"])
    stages = stage_graph(recipe)
    lost = training_lost(stages, run, {"routed"})
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    if agreed:
        confirm_replacing(lost, yes=False)
    else:
        with pytest.raises(BarError, match="nothing was changed"):
            confirm_replacing(lost, yes=False)
    shown = capsys.readouterr().out
    assert "routed (route.fraction is 0.5, was 0.25; 3 steps, 2.0 GPU-hours)" in shown


def test_submit_asks_too_but_not_for_what_it_prints(run, tmp_path, capsys):
    costly(run, "routed")
    words = [str(run / "recipe.yaml"), f"runs={run.parent}", "route.fraction=0.5"]
    before = state(run)
    assert main(["submit", *words, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "to be trained anew: routed (route.fraction is 0.5, was 0.25" in shown.err
    assert shown.out.startswith("===== routed\n")
    assert main(["submit", *words, "--write"]) == 1
    assert "this would replace 2.0 GPU-hours of training: routed" in capsys.readouterr().err
    after = state(run)
    assert {path: after.get(path) for path in before if path.is_file()} == {
        path: time for path, time in before.items() if path.is_file()
    }
    assert main(["submit", *words, "--write", "--yes"]) == 0
    assert "4 scripts" in capsys.readouterr().out
