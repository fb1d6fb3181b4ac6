"""Changes that an upgrade made to a run: scores before and after, and the stages computed for it.

RUN/before holds the models and results that stood before, and plan.json: what was asked, and the id
of every stage that was done then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from megatron_bar.analysis.formats import cell
from megatron_bar.analysis.intervals import wilson_interval
from megatron_bar.analysis.runs import read_stages
from megatron_bar.analysis.scores import MISSING
from megatron_bar.recipe.names import ROUTED
from megatron_bar.runtime.files import read_json

BEFORE = "before"
PLAN = "plan.json"


@dataclass(frozen=True)
class Change:
    """One task's score of the routed model; None where it wasn't asked."""

    task: str
    before: float | None
    after: float | None
    # 95 % of differences between two models that are equally good lie within it, for as many items
    # drawn anew. Both answer the same items, so it is rather too wide.
    noise: float | None

    @property
    def difference(self) -> float | None:
        if self.before is None or self.after is None:
            return None
        return self.after - self.before


@dataclass(frozen=True)
class Upgrade:
    """An upgrade so far."""

    asked: dict[str, Any]
    changes: list[Change]
    recomputed: list[dict[str, Any]]  # stage, seconds, and tokens where it trained
    kept: int  # stages that were left as they were

    @property
    def seconds(self) -> float:
        return sum(stage["seconds"] for stage in self.recomputed)

    @property
    def tokens(self) -> int:
        """Supervised ones."""
        return sum(stage["tokens"] for stage in self.recomputed)

    def words(self) -> str:
        """The stages that were recomputed, in a line."""
        names = ", ".join(stage["stage"] for stage in self.recomputed) or "nothing"
        return (f"recomputed: {names}: {len(self.recomputed)} stages, {self.tokens:,} supervised "
                f"tokens, {self.seconds:.0f} s of stages; left as they were: {self.kept} stages")


def read_upgrade(run: Path) -> Upgrade | None:
    """The upgrade that made `run` what it is, or None if it is as it was first made."""
    run = Path(run)
    if not (run / BEFORE / PLAN).is_file():
        return None
    plan = read_json(run / BEFORE / PLAN)
    stages = read_stages(run)
    done = [s for s in stages if plan["stages"].get(s["stage"]) != s["id"]]
    recomputed = [{"stage": s["stage"], "seconds": s["seconds"], "tokens": s.get("tokens", 0)}
                  for s in done]
    return Upgrade(plan["asked"], _changes(run / BEFORE, run), recomputed,
                   len(stages) - len(recomputed))


def _changes(before: Path, after: Path) -> list[Change]:
    old, new = (_tasks(run) for run in (before, after))
    changes = []
    for task in [*new, *(task for task in old if task not in new)]:
        was, now = (tasks.get(task, {}) for tasks in (old, new))
        noise = None
        if was and now:
            intervals = [wilson_interval(result["score"], result["count"]) for result in (was, now)]
            noise = math.hypot(*((high - low) / 2 for low, high in intervals))
        changes.append(Change(task, was.get("score"), now.get("score"), noise))
    return changes


def _tasks(run: Path) -> dict[str, dict[str, Any]]:
    path = run / "evaluate" / ROUTED / "results.json"
    return read_json(path)["tasks"] if path.is_file() else {}


def upgrade_table(upgrade: Upgrade) -> Table:
    """A table of scores before and after, for the terminal."""
    table = Table(title="The routed model before and after the upgrade")
    table.add_column("task")
    for column in ("before", "after", "change", "noise"):
        table.add_column(column, justify="right")
    for change in upgrade.changes:
        moved = MISSING if change.difference is None else f"{change.difference:+.2f}"
        noise = MISSING if change.noise is None else f"\u00b1{change.noise:.2f}"
        clear = (change.difference is not None and change.noise is not None
                 and abs(change.difference) > change.noise)
        table.add_row(Text(change.task), cell(change.before), cell(change.after),
                      Text(moved, style="bold" if clear else ""), noise)
    return table
