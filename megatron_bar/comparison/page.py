"""report.html of several runs, which compares them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_bar.analysis.page import write_page
from megatron_bar.analysis.report import TEMPLATE, section_parts
from megatron_bar.analysis.runs import read_stages
from megatron_bar.comparison.compare import System
from megatron_bar.comparison.tables import comparison_section


def write_comparison(name: str, systems: Sequence[System], target: Path) -> None:
    """Write a page called `name` that compares systems to `target`, in one step."""
    best = max(systems, key=lambda system: system.overall.mean)
    finished = max(
        stage["finished"]
        for system in systems
        for run in system.runs
        for stage in read_stages(Path(run))
    )
    write_page(
        Path(target),
        TEMPLATE,
        name=name,
        when=finished,
        tiles=[],
        summary=f"{len(systems)} systems; {best.label} has the highest mean over the tasks, "
        f"{best.overall.mean:.2f}. Each run's folder has a report of its own.",
        parts=section_parts([], [comparison_section(systems)]),
    )
