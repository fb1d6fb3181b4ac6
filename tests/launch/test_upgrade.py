"""`megatron-bar upgrade`: merge and route again and nothing else, whatever happens in between."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from megatron_bar.checkpoints.merge import merge
from megatron_bar.cli import main
from megatron_bar.models.config import ModelConfig
from megatron_bar.stages.context import read_done
from megatron_bar.training.groups import group_digests
from tests.launch.conftest import sft, small_recipe

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
AFTER = {"merged", "routed", "hf", "evaluate/merged", "evaluate/routed", "report"}


def ids(run: Path) -> dict[str, str]:
    found = {
        str(path.parent.relative_to(run)): json.loads(path.read_text())["id"]
        for path in run.rglob("stage.json")
    }
    return {name: id for name, id in found.items() if not name.startswith("before/")}


def upgraded(run: Path, *words: str) -> set[str]:
    """The stages that were done anew."""
    before = ids(run)
    assert main(["upgrade", str(run), *words]) == 0
    return {name for name, id in ids(run).items() if before.get(name) != id}


@pytest.fixture(scope="module")
def with_code(small_run, tmp_path_factory) -> Path:
    """The run with a third domain, which a recipe trained."""
    folder = tmp_path_factory.mktemp("upgraded")
    shutil.copytree(small_run, folder / "small")
    recipe = small_recipe(folder) | {"domains": {"code": sft("code")}}
    (folder / "code.yaml").write_text(yaml.safe_dump(recipe))
    again = upgraded(
        folder / "small",
        "--add",
        f"code={folder / 'code.yaml'}",
        "route.training.layout={processes: 2, expert: 2}",
    )
    assert again == AFTER | {"code/branch", "code/sft", "evaluate/code", "evaluate/anchor"}
    return folder / "small"


def test_a_domain_that_a_recipe_trains(small_run, with_code, capsys):
    assert ModelConfig.load(with_code / "routed" / "checkpoint").expert_names == (
        "anchor",
        "math",
        "tool_use",
        "code",
    )
    assert main(["run", str(with_code / "recipe.yaml")]) == 0
    assert "nothing to do" in capsys.readouterr().out
    recorded = json.loads((with_code / "upgrade.json").read_text())
    assert [stage["stage"] for stage in recorded["recomputed"]][:4] == [
        "code/branch",
        "code/sft",
        "merged",
        "routed",
    ]
    stages = [read_done(with_code / stage["stage"]) for stage in recorded["recomputed"]]
    assert recorded["tokens"] == sum(stage.get("tokens", 0) for stage in stages) > 0
    assert recorded["seconds"] == pytest.approx(sum(stage["seconds"] for stage in stages))
    assert {c["task"] for c in recorded["changes"]} == {"math", "tool_use", "code", "general"}
    kept = with_code / "before"
    assert group_digests(kept / "routed" / "checkpoint") == group_digests(
        small_run / "routed" / "checkpoint"
    )
    assert "before the upgrade" in (with_code / "report.html").read_text()


def test_a_branch_of_another_run_under_another_name(small_run, with_code, run, tmp_path):
    """Takes no room, and gives the model that a merge by hand gives; --undo takes it back."""
    before, digests = ids(run), group_digests(run / "routed" / "checkpoint")
    again = upgraded(run, "--add", f"python={with_code / 'code'}", "--drop", "tool_use")
    assert again == AFTER | {"python/branch", "evaluate/python", "evaluate/anchor"}
    assert not (run / "tool_use").exists() and (run / "before" / "tool_use" / "sft").is_dir()
    adopted = run / "python" / "branch" / "checkpoint"
    assert ModelConfig.load(adopted).expert_names == ("anchor", "python")
    assert ModelConfig.load(with_code / "code/sft/checkpoint").expert_names == ("anchor", "code")
    shared = [path for path in adopted.iterdir() if path.suffix == ".distcp"]
    assert shared and all(path.stat().st_nlink > 1 for path in shared)
    merge([run / "math/sft/checkpoint", adopted], tmp_path / "by-hand", run / "anchor/checkpoint")
    assert group_digests(run / "merged" / "checkpoint") == group_digests(tmp_path / "by-hand")
    routed = read_done(run / "routed")["settings"]["sampled"]
    assert {source["toy"] for source in routed["python"]} == {"code", "general"}
    assert set(json.loads((run / "evaluate/routed/results.json").read_text())["tasks"]) == {
        "math",
        "python",
        "general",
    }
    assert main(["upgrade", str(run), "--undo"]) == 0
    assert ids(run) == before and not (run / "before").exists() and not (run / "python").exists()
    assert group_digests(run / "routed" / "checkpoint") == digests
    again = {name for name, id in ids(run).items() if before[name] != id}
    assert main(["run", str(run / "recipe.yaml")]) == 0 and not again


def test_a_checkpoint_without_a_run_keeps_the_domains_data(run, with_code, tmp_path):
    shutil.copytree(with_code / "code" / "sft" / "checkpoint", tmp_path / "better")
    assert upgraded(run, "--replace", f"math={tmp_path / 'better'}", "export=false") == (
        AFTER - {"hf"} | {"math/branch", "evaluate/math"}
    )
    expert = group_digests(run / "routed" / "checkpoint")["expert.1"]
    assert expert == group_digests(run / "before/math/sft/checkpoint")["expert.1"] or (
        expert == group_digests(tmp_path / "better")["expert.1"]
    )
    sampled = read_done(run / "routed")["settings"]["sampled"]
    assert {source["toy"] for source in sampled["math"]} == {"math", "general"}
    assert not (run / "math" / "sft").exists()


@pytest.mark.parametrize(
    "option, name, moment",
    [
        ("--replace", "math", "before/plan.json"),
        ("--add", "python", "routed/metrics.jsonl"),
    ],
)
def test_killed_at_any_moment_it_goes_on(option, name, moment, run, with_code, capsys):
    words = [str(run), option, f"{name}={with_code / 'code' / 'sft'}"]
    (run / "routed" / "metrics.jsonl").unlink()  # of the run before
    killed = subprocess.Popen(
        [sys.executable, "-m", "megatron_bar", "upgrade", *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    while not (run / moment).is_file():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = group_digests(run / "before" / "routed" / "checkpoint")
    assert main(["upgrade", str(run), "--drop", "tool_use"]) == 1
    assert "another upgrade was begun (--" in capsys.readouterr().err
    assert main(["upgrade", str(run)] if moment.startswith("before") else ["upgrade", *words]) == 0
    assert group_digests(run / "before" / "routed" / "checkpoint") == kept
    assert json.loads((run / "upgrade.json").read_text())["changes"]
    expected = ("anchor", "math", "tool_use") + (("python",) if name == "python" else ())
    assert ModelConfig.load(run / "routed" / "checkpoint").expert_names == expected
    assert main(["upgrade", str(run)]) == 1
    assert "say what to change" in capsys.readouterr().err


def test_prepared_for_a_cluster(run, with_code, capsys):
    assert main(["upgrade", str(run), "--add", f"python={with_code / 'code'}", "--prepare"]) == 0
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["domains"]["python"]["checkpoint"].endswith("code/sft/checkpoint")
    assert (run / "before" / "hf" / "model").is_dir()
    assert main(["submit", str(run / "recipe.yaml"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "===== python/branch" in shown and "===== math" not in shown


@pytest.fixture(scope="module")
def another_anchor(tmp_path_factory) -> Path:
    from megatron_bar.checkpoints.convert import import_hf
    from tests.models_hf import random_experts

    folder = tmp_path_factory.mktemp("other")
    random_experts(2).save_pretrained(folder / "hf")
    import_hf(folder / "hf", folder / "branch")
    return folder / "branch"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--replace", "law=BRANCH"], "has no domain 'law'; it has math, tool_use"),
        (["--drop", "anchor"], "has no domain 'anchor'"),
        (["--add", "math=BRANCH"], "has a domain 'math' already; use --replace"),
        (["--add", "law"], "--add law: write NAME="),
        (["--replace", "math=BRANCH", "--drop", "math"], "math is named twice"),
        (["--add", "law=nowhere"], "nowhere is neither a branch's checkpoint, nor the folder"),
        (["--add", "law=OTHER"], "are models of different shape"),
        (["--add", "law=RUN/math"], "lies in the run that it is to change"),
        (["--add", "law=ANCHOR"], "has no experts; a branch has two"),
        (["--add", "law=BARE"], "say 'domains.law.routing="),
        (["--add", "general=BRANCH"], "a domain can't be called 'general'"),
        (
            ["--drop", "math", "--drop", "tool_use"],
            "recipe RUN/recipe.yaml as it would be: domains is empty",
        ),
        (
            ["--drop", "math", "route.experts_per_token=3"],
            "recipe RUN/recipe.yaml as it would be: route.experts_per_token 3 is not from 1 to 2",
        ),
        (["--add", "law=RECIPE"], "has no domain 'law'; it has math, tool_use"),
        ([], "say what to change"),
    ],
)
def test_bad_words_change_nothing(words, message, run, small_run, another_anchor, tmp_path, capsys):
    shutil.copytree(small_run / "math/sft/checkpoint", tmp_path / "bare")
    places = {
        "BRANCH": small_run / "math",
        "OTHER": another_anchor,
        "RUN": run,
        "ANCHOR": small_run / "anchor" / "checkpoint",
        "BARE": tmp_path / "bare",
        "RECIPE": small_run / "recipe.yaml",
    }
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
        message = message.replace(name, str(place))
    before = set(run.rglob("*"))
    assert main(["upgrade", str(run), *words]) == 1
    shown = capsys.readouterr().err
    assert message in shown and len(shown.strip().splitlines()) == 1
    assert set(run.rglob("*")) - before <= {run / ".lock"}


def test_a_run_that_is_not_finished(run, tmp_path, capsys):
    shutil.rmtree(run / "routed")
    assert main(["upgrade", str(run), "--drop", "math"]) == 1
    assert "isn't finished: routed is missing" in capsys.readouterr().err
    assert main(["upgrade", str(tmp_path), "--drop", "math"]) == 1
    assert "is no run's folder" in capsys.readouterr().err
