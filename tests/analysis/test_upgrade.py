"""What an upgrade says of the tasks that it was meant for, and of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from megatron_bar.analysis.upgrade import read_upgrade, upgrade_table
from tests.analysis.conftest import write


def _results(**right: int) -> dict[str, Any]:
    """Of 50 items each, so many first ones right."""
    return {
        "tasks": {
            task: {"score": n / 50, "count": 50, "items": [1.0] * n + [0.0] * (50 - n)}
            for task, n in right.items()
        }
    }


def _upgraded(run: Path, before: dict[str, Any], after: dict[str, Any], **asked: Any) -> Path:
    for name, replacing in (("replace", {}), ("add", {}), ("drop", [])):
        asked.setdefault(name, replacing)
    write(run / "before" / "plan.json", {"asked": asked, "stages": {}})
    write(run / "before" / "evaluate" / "routed" / "results.json", before)
    write(run / "evaluate" / "routed" / "results.json", after)
    return run


def test_what_nobody_touched_is_tested_in_pairs(tmp_path):
    run = _upgraded(
        tmp_path,
        _results(math=30, law=40, general=45),
        _results(math=45, law=39, general=44),
        replace={"math": "x"},
    )
    upgrade = read_upgrade(run)
    assert upgrade.others() == "no other task moved: law, general changed within noise"
    math = upgrade.changes[0]
    assert math.meant and (math.paired.better, math.paired.worse) == (15, 0)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(upgrade_table(upgrade))
    shown = capture.get()
    assert "+0.30" in shown and "p 6e-05" in shown and shown.count("within noise") == 2
    assert "0.60 (0.46 to 0.72)" in shown  # Wilson's of 30 of 50


def test_another_task_that_moved_is_named(tmp_path):
    run = _upgraded(
        tmp_path, _results(math=30, law=40), _results(math=45, law=30), replace={"math": "x"}
    )
    assert read_upgrade(run).others() == "other tasks moved: law -0.20 (p 0.002)"


def test_a_task_that_came_or_went_has_one_score(tmp_path):
    run = _upgraded(tmp_path, _results(math=30), _results(law=40), add={"law": "x"}, drop=["math"])
    upgrade = read_upgrade(run)
    assert upgrade.others() is None
    assert [(c.task, c.difference, c.verdict) for c in upgrade.changes] == [
        ("law", None, "\u2013"),
        ("math", None, "\u2013"),
    ]
