"""watch.html: where a run stands, as a page that a browser loads anew by itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from megatron_bar.analysis.flow import flow_of
from megatron_bar.analysis.page import write_page
from megatron_bar.analysis.plots import training_curves

TEMPLATE = "watch.html.j2"


def write_watch_page(
    run: Path,
    target: Path,
    said: str,
    tiles: Sequence[tuple[str, str]],
    stages: Sequence[dict[str, Any]],
    labels: Mapping[str, str],
    rows: Sequence[Any],
    every: int | None = None,
) -> None:
    """Write the page of `run` to `target`, in one step.

    `said` tells in a sentence how far it is, `tiles` in numbers, each with what it is. `stages` are
    what `flow_of` takes, `labels` what their kinds are called, `rows` the lines of the table, a
    `StageStatus` each. The browser loads it anew `every` so many seconds, where that is given.
    """
    write_page(
        target,
        TEMPLATE,
        name=run.resolve().name,
        said=said,
        tiles=tiles,
        rows=rows,
        every=every,
        when=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        flow=flow_of(stages, labels),
        seconds=sum(stage["seconds"] for stage in stages),
        in_sequence=False,
        curves=Markup(training_curves(run)),
    )
