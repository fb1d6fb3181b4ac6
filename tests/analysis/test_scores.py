"""Scores read, compared and put in tables; intervals against values worked out by hand."""

from __future__ import annotations

import re
import shutil

import pytest
from rich.console import Console

from megatron_bar.analysis.intervals import wilson_interval
from megatron_bar.analysis.runs import read_stages, stage_names
from megatron_bar.analysis.scores import (
    MISSING,
    compare,
    gained,
    kept_share,
    load_results,
    score_table,
    task_table,
)
from megatron_bar.runtime.errors import BarError
from tests.analysis.conftest import write_results


def printed(results, width=100, **options):
    console = Console(width=width, record=True, **options)
    with console.capture() as capture:
        console.print(score_table(results))
    return capture.get()


def test_order_is_the_recipes(run):
    models = ["anchor", "tool_use", "math", "code", "merged", "routed"]
    assert list(load_results(run)) == models
    assert [stage["stage"] for stage in read_stages(run)] == [
        "base",
        "anchor",
        *(f"{d}/{s}" for d in models[1:4] for s in ("branch", "midtrain", "sft")),
        "merged",
        "routed",
        "hf",
        *(f"evaluate/{model}" for model in models),
    ]
    (run / "recipe.yaml").unlink()
    assert list(load_results(run)) == ["anchor", "code", "math", "tool_use", "merged", "routed"]


def test_models_between_a_domains_stages(run):
    for model, score in (("math.sft", 0.5), ("math.midtrain", 0.25)):
        write_results(run, model, {"math": score})
    results = load_results(run)
    names = list(results)
    assert names[names.index("math") - 2 : names.index("math")] == ["math.midtrain", "math.sft"]
    shown = printed(results)
    assert "branch math after midtrain" in shown and "branch math after sft" in shown
    assert kept_share(results) == kept_share({m: r for m, r in results.items() if "." not in m})
    own = next(row.cells for row in compare(results).rows if row.model == "math.sft")
    assert [cell is not None and cell.own for cell in own] == [False, True, False, False]


def test_a_domain_that_left_the_recipe_is_left_out(run):
    write_results(run, "poetry", {"poetry": 1.0})
    (run / "poetry" / "sft").mkdir(parents=True)
    (run / "poetry" / "sft" / "metrics.jsonl").write_text("")
    assert "poetry" not in load_results(run)
    assert "poetry/sft" not in stage_names(run, "metrics.jsonl")


def test_kept_share(run):
    kept = kept_share(load_results(run))
    assert list(kept) == ["tool_use", "math", "code"]
    assert kept == pytest.approx({"tool_use": 0.46 / 0.50, "math": 0.71 / 0.73, "code": 1.0})


def test_kept_share_leaves_out_what_it_cannot_know(run):
    results = load_results(run)
    results["code"]["tasks"]["code"]["score"] = 0.0
    del results["routed"]["tasks"]["math"]
    assert list(kept_share(results)) == ["tool_use"]
    del results["routed"]
    assert kept_share(results) == {}


def test_compare(run):
    scores = compare(load_results(run))
    assert scores.tasks == ("tool_use", "math", "code", "general")
    assert [row.label for row in scores.rows] == [
        "base (anchor)",
        "branch tool_use",
        "branch math",
        "branch code",
        "merged",
        "routed",
    ]
    own = [
        (row.model, task)
        for row in scores.rows
        for task, cell in zip(scores.tasks, row.cells)
        if cell and cell.own
    ]
    assert own == [("tool_use", "tool_use"), ("math", "math"), ("code", "code")]
    assert scores.rows[2].cells[0] is None
    cell = scores.rows[2].cells[1]
    assert (cell.score, cell.count) == (0.73, 100)
    assert (cell.interval.low, cell.interval.high) == pytest.approx(wilson_interval(0.73, 100))


def test_gained_compares_item_by_item(run):
    results = load_results(run)
    found = gained(results)
    assert list(found) == ["tool_use", "math", "code"]
    # 71 and 73 of the same hundred: two items differ, one way
    assert found["math"].difference.mean == pytest.approx(-0.02)
    assert -0.06 < found["math"].difference.low < -0.02 < found["math"].difference.high <= 0
    assert (found["math"].worse, found["math"].p) == (2, 0.5) and found["math"].within_noise
    assert (found["code"].difference.low, found["code"].difference.high) == (0, 0)
    del results["routed"]["tasks"]["math"]["items"]
    assert list(gained(results)) == ["tool_use", "code"]


def test_every_score_stands_over_its_interval(run):
    shown = printed(load_results(run), width=140)
    assert "0.63\u20130.81" not in shown and "0.64\u20130.81" in shown  # Wilson's of 73 of 100
    assert "routed \u2212 branch" in shown and shown.count("within noise") == 3


def test_one_models_table(run):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(task_table(load_results(run)["math"]))
    assert "0.636\u20130.807" in capture.get() and "Wilson" in capture.get()


def test_table(run):
    lines = {
        line.split("│")[1].strip(): [part.strip() for part in line.split("│")[2:-1]]
        for line in printed(load_results(run)).splitlines()
        if line.count("│") == 6
    }
    assert lines["branch math"] == [MISSING, "0.73", MISSING, "0.90"]
    assert lines["routed"] == ["0.46", "0.71", "0.90", "0.94"]
    assert lines["routed / branch"] == ["92%", "97%", "100%", MISSING]
    assert lines["base (anchor)"] == ["0.00", "0.05", "0.00", "0.95"]


def test_table_sets_a_branchs_own_domain_in_bold(run):
    text = printed(load_results(run), force_terminal=True, color_system="standard")
    row = next(line for line in text.splitlines() if "branch math" in line)
    assert re.findall(r"\x1b\[1m *([^ \x1b]+)", row) == ["0.73"]


def test_table_without_a_routed_model(run):
    shutil.rmtree(run / "evaluate" / "routed")
    assert "routed" not in printed(load_results(run))


def test_names_are_no_markup(run):
    results = load_results(run)
    results["[red]"] = results["math"] | {"model": "[red]"}
    assert "branch [red]" in printed(results)


def test_no_tasks(run):
    results = {"anchor": {"model": "anchor", "tasks": {}, "routing": {}, "experts": []}}
    assert compare(results).tasks == ()
    assert "base (anchor)" in printed(results)


def test_nothing_evaluated(tmp_path):
    with pytest.raises(BarError, match="let its evaluate stages run first"):
        load_results(tmp_path)


def test_broken_files(run):
    (run / "evaluate" / "math" / "results.json").write_text("{")
    with pytest.raises(BarError, match=r"math/results\.json is not valid JSON"):
        load_results(run)
    for text in ("domains: [", "domains: 3", "- a"):
        (run / "recipe.yaml").write_text(text)
        with pytest.raises(BarError, match="recipe"):
            load_results(run)
