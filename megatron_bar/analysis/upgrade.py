"""Changes that an upgrade made to a run: scores before and after, and the stages computed for it.

RUN/before holds the models and results that stood before, and plan.json: what was asked, and the id
of every stage that was done then.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from megatron_bar.analysis.intervals import Interval, score_interval
from megatron_bar.analysis.paired import WITHIN_NOISE, Paired, paired_test
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
    before: Interval | None
    after: Interval | None
    paired: Paired | None  # None where the two weren't asked the same items, or one none
    meant: bool  # the task of a domain that was replaced, added or dropped

    @property
    def difference(self) -> float | None:
        return (
            None
            if self.before is None or self.after is None
            else self.after.mean - self.before.mean
        )

    @property
    def verdict(self) -> str:
        """Whether the change is more than noise, in a word or two."""
        if self.paired is not None:
            return self.paired.verdict
        return MISSING if self.difference is None else "other items"


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

    def others(self) -> str | None:
        """Whether a domain moved that nobody touched, in a line; None where that can't be told."""
        tested = {c.task: c.paired for c in self.changes if c.paired is not None and not c.meant}
        if not tested:
            return None
        moved = [
            f"{task} {paired.difference.mean:+.2f} ({paired.verdict})"
            for task, paired in tested.items()
            if not paired.within_noise
        ]
        if not moved:
            return f"no other task moved: {', '.join(tested)} changed {WITHIN_NOISE}"
        return f"other tasks moved: {', '.join(moved)}"

    def words(self) -> str:
        """The stages that were recomputed, in a line."""
        names = ", ".join(stage["stage"] for stage in self.recomputed) or "nothing"
        return (
            f"recomputed: {names}: {len(self.recomputed)} stages, {self.tokens:,} supervised "
            f"tokens, {self.seconds:.0f} s of stages; left as they were: {self.kept} stages"
        )


def read_upgrade(run: Path) -> Upgrade | None:
    """The upgrade that made `run` what it is, or None if it is as it was first made."""
    run = Path(run)
    if not (run / BEFORE / PLAN).is_file():
        return None
    plan = read_json(run / BEFORE / PLAN)
    stages = read_stages(run)
    done = [s for s in stages if plan["stages"].get(s["stage"]) != s["id"]]
    recomputed = [
        {"stage": s["stage"], "seconds": s["seconds"], "tokens": s.get("tokens", 0)} for s in done
    ]
    asked = plan["asked"]
    meant = {*asked.get("replace", ()), *asked.get("add", ()), *asked.get("drop", ())}
    return Upgrade(
        asked, _changes(run / BEFORE, run, meant), recomputed, len(stages) - len(recomputed)
    )


def _changes(before: Path, after: Path, meant: set[str]) -> list[Change]:
    old, new = (_tasks(run) for run in (before, after))
    changes = []
    for task in [*new, *(task for task in old if task not in new)]:
        was, now = old.get(task), new.get(task)
        changes.append(
            Change(
                task,
                None if was is None else score_interval(was),
                None if now is None else score_interval(now),
                None if was is None or now is None else paired_test(now, was),
                task in meant,
            )
        )
    return changes


def _tasks(run: Path) -> dict[str, dict[str, Any]]:
    path = run / "evaluate" / ROUTED / "results.json"
    return read_json(path)["tasks"] if path.is_file() else {}


def upgrade_table(upgrade: Upgrade) -> Table:
    """A table of scores before and after, each with its interval, for the terminal."""
    table = Table(title="The routed model before and after the upgrade")
    table.add_column("task")
    for column in ("before", "after", "change", "95% interval", "by chance?"):
        table.add_column(column, justify="right")
    for change in upgrade.changes:
        moved = MISSING if change.difference is None else f"{change.difference:+.2f}"
        clear = change.paired is not None and not change.paired.within_noise
        span = MISSING if change.paired is None else _span(change.paired.difference, "+.2f")
        table.add_row(
            Text(change.task),
            _scored(change.before),
            _scored(change.after),
            Text(moved, style="bold" if clear else ""),
            span,
            change.verdict,
        )
    return table


def _scored(interval: Interval | None) -> str:
    return MISSING if interval is None else f"{interval.mean:.2f} ({_span(interval, '.2f')})"


def _span(interval: Interval, form: str) -> str:
    return f"{interval.low:{form}} to {interval.high:{form}}"
