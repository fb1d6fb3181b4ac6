"""Systems side by side: what is averaged, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from megatron_bar.analysis.intervals import wilson_interval
from megatron_bar.cli import main
from megatron_bar.comparison.compare import compare_runs, comparison_data, differences
from megatron_bar.comparison.tables import comparison_tables
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import load_recipe, save_recipe
from megatron_bar.runtime.console import print_wide
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.training_stage import TrainingStage

TOY = Path(__file__).parents[2] / "examples" / "toy.yaml"
SCORES = {"math": 0.5, "code": 0.9, "tool_use": 0.7, "safety": 1.0, "general": 0.9}


def finished(runs: Path, name: str, seed: int, better: float = 0.0, *overrides: str) -> Path:
    """A run as its stages would leave it, but for checkpoints; 10 s a stage."""
    run = runs / name
    run.mkdir(parents=True)
    recipe = load_recipe(TOY, [f"name={name}", f"runs={runs}", f"seed={seed}", *overrides])
    save_recipe(recipe, run / "recipe.yaml")
    for stage in stage_graph(recipe):
        folder = run / stage.name
        folder.mkdir(parents=True)
        steps = stage.training.steps if isinstance(stage, TrainingStage) else None
        (folder / "stage.json").write_text(
            json.dumps(
                {
                    "stage": stage.name,
                    "kind": stage.KIND,
                    "seconds": 10.0,
                    "steps": steps or 0,
                    "trainable": 7,
                    "frozen": 1,
                    "layout": {"processes": 1},
                    "versions": {},
                    "finished": f"2026-11-22T03:2{seed}:07Z",
                }
            )
        )
        if stage.KIND == "evaluate":
            base = stage.name == "evaluate/anchor"
            (folder / "results.json").write_text(
                json.dumps(
                    {
                        "tasks": {
                            task: _result(
                                (1.0 if task == "general" else 0.0)
                                if base
                                else SCORES[task] + better
                            )
                            for task in stage.tasks
                        }
                    }
                )
            )
    return run


def _result(score: float) -> dict:
    """Of ten items, the first ones right."""
    right = round(10 * score)
    return {"score": score, "count": 10, "items": [1.0] * right + [0.0] * (10 - right)}


@pytest.mark.slow
def test_runs_that_differ_in_the_seed_are_one_system(tmp_path):
    # One was computed otherwise, which changes nothing but rounding.
    runs = [
        finished(tmp_path, f"toy-{seed}", seed, -0.1 * seed, *how)
        for seed, *how in ((1, "domains.math.sft.micro_batch_size=2"), (0,), (2,))
    ]
    (system,) = compare_runs(runs)
    assert system.seeds == (0, 1, 2) and system.label == "toy-0"
    assert system.after["math"].values == (0.5, 0.4, 0.3)
    assert system.after["math"].mean == pytest.approx(0.4)
    assert system.after["math"].spread == pytest.approx(0.1)  # over n - 1
    assert system.overall.values == pytest.approx((0.8, 0.7, 0.6))
    assert system.before["general"].mean == 1.0
    assert system.branches["code"]["code"].values == pytest.approx((0.9, 0.8, 0.7))
    midtrain, sft, rlvr, route = system.spent
    assert (midtrain.steps, sft.steps, rlvr.steps, route.steps) == (250, 1080, 40, 300)
    assert rlvr.tokens == 40 * 128 * (2048 + 40)  # the most that prompts and answers may be
    assert system.tokens.mean == (1330 * 4 + 300 * 8) * 256 + rlvr.tokens
    # Two mid-trainings, four SFTs, two RLVRs, four branches, a merge, routing with two processes.
    assert system.seconds.mean == (2 + 4 + 2 + 4 + 1 + 2) * 10
    assert sft.data == ("math 4000", "general 1500", "code 4000", "tool_use 4000", "safety 4000")
    assert route.data == ("25% of all SFT data",) and sft.lr == (4e-3,)


@pytest.mark.slow
def test_folders_of_runs_and_other_settings(tmp_path, capsys):
    finished(tmp_path / "both", "bar", 0)
    finished(tmp_path / "both", "flexolmo", 0, 0.0, "method=flexolmo")
    finished(tmp_path / "both", "a-longer-bar", 0, 0.0, "domains.math.sft.steps=500")
    systems = compare_runs([tmp_path / "both"])
    assert [s.label for s in systems] == ["a-longer-bar", "bar", "flexolmo"]
    assert all(s.after["math"].spread is None for s in systems)
    print_wide(*comparison_tables(systems))
    shown = capsys.readouterr().out
    assert "flexolmo" in shown and "0.80" in shown and "1.00 > 0.90" in shown
    data = json.loads(json.dumps(comparison_data(systems)))
    assert data[2]["after"]["code"] == {
        "values": [0.9],
        "mean": 0.9,
        "spread": None,
        "interval": pytest.approx(wilson_interval(0.9, 10)),
    }
    assert data[2]["less_first"]["code"]["within_noise"] is True
    assert "0.90 (0.60\u20130.98)" in shown and "+0.00, within noise" in shown
    assert "Less a-longer-bar, on the same items" in shown


@pytest.mark.slow
def test_differences_are_over_items_and_seeds(tmp_path):
    """Of ten items a half and all are right; at a second seed as well."""
    for seed in (0, 1):
        finished(tmp_path, f"bar-{seed}", seed)
        finished(tmp_path, f"retrain-{seed}", seed, 0.1 * seed, "method=retrain")
    bar, retrain = compare_runs([tmp_path])
    found = differences(retrain, bar)
    assert found["math"].difference.mean == pytest.approx(0.05)  # 0 and a tenth
    assert found["math"].p is None and found["math"].better == 1  # a half, of one item
    assert found["math"].within_noise
    # Items' means over seeds: five of 1, one of .5, four of 0.
    interval = retrain.after["math"].interval
    assert interval.mean == pytest.approx(0.55) and interval.low < 0.35 < 0.75 < interval.high


@pytest.mark.slow
def test_other_items_and_other_seeds_are_not_compared(tmp_path):
    first, second = (
        finished(tmp_path, "bar", 0),
        finished(tmp_path, "retrain", 1, 0, "method=retrain"),
    )
    assert differences(*compare_runs([first, second])) == {}
    third = finished(tmp_path, "btx", 0, 0.0, "method=btx")
    path = third / "evaluate" / "routed" / "results.json"
    results = json.loads(path.read_text())
    results["tasks"]["math"]["samples"] = [{"item": 0, "prompt": "another"}]
    path.write_text(json.dumps(results))
    assert set(differences(*compare_runs([first, third]))) == set(SCORES) - {"math"}


@pytest.mark.slow
def test_reports_of_compared_systems(tmp_path, capsys):
    both = tmp_path / "both"
    bar = finished(both, "bar", 0)
    finished(both, "retrain", 1, 0.05, "method=retrain")
    assert main(["report", str(both)]) == 0
    page = (both / "report.html").read_text(encoding="utf-8")
    assert "2 systems; retrain has the highest mean over the tasks, 0.85." in page
    assert "03:21 UTC" in page and page.count("<section") == 1 and page.count("<h3>") == 3
    assert "<th>bar</th><td>0</td>" in page and "<td>1.00 &gt; 0.90</td>" in page
    assert '<td class="left wrap"><small>math 4000, general 1500' in page
    assert main(["report", str(bar), "--compare", str(both)]) == 0
    own = (bar / "report.html").read_text(encoding="utf-8")
    assert own.index('<section id="scores"') < own.index('<section id="systems"')
    assert "<th>retrain</th><td>1</td>" in own
    assert main(["report", str(bar)]) == 0
    assert 'id="systems"' not in (bar / "report.html").read_text(encoding="utf-8")
    assert main(["report", str(bar), "--compare", str(tmp_path / "none")]) == 1
    assert "neither a run nor a folder of runs" in capsys.readouterr().err


@pytest.mark.slow
def test_what_can_not_be_compared_is_refused(tmp_path):
    run = finished(tmp_path, "toy", 0)
    with pytest.raises(BarError, match="neither a run nor a folder of runs"):
        compare_runs([tmp_path / "none"])
    shutil.copytree(run, tmp_path / "again")
    with pytest.raises(BarError, match="two have the same seed"):
        compare_runs([run, tmp_path / "again"])
    (run / "math" / "sft" / "stage.json").unlink()
    with pytest.raises(BarError, match="math/sft isn't done; finish the run first"):
        compare_runs([run])
