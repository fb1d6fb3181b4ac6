"""`megatron-bar watch`: a page of a run, rewritten while the run goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from megatron_bar.analysis.formats import duration
from megatron_bar.analysis.watch_page import write_watch_page
from megatron_bar.launch.slurm.site import Site
from megatron_bar.launch.slurm.status import Phase, StageStatus, stage_statuses
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import load_recipe
from megatron_bar.runtime.console import say
from megatron_bar.stages.at_work import begun_at
from megatron_bar.stages.context import read_done
from megatron_bar.stages.registry import LABELS
from megatron_bar.stages.stage import Stage
from megatron_bar.training.metrics import read_metrics

PAGE = "watch.html"
# Between two stages of a run nothing is at work, for as long as the next takes to load.
_QUIET_SECONDS = 60.0


@dataclass(frozen=True)
class Seen:
    """A stage at one moment."""

    stage: Stage
    status: StageStatus
    seconds: float  # that it took, or has taken so far
    processes: int
    facts: dict[str, Any]  # of its record, or of its last step


def watch(
    run: Path, target: Path, every: int, site: Site | None = None, once: bool = False
) -> None:
    """Write `target` every `every` seconds until the run ends; with `once`, now and no more.

    A run has ended when all its stages are done, or when none was at work or queued for a minute.

    Raises BarError if `run` is no run's folder.
    """
    quiet_since: float | None = None
    told = False
    while True:
        seen = look(run)
        now = time.monotonic()
        if any(one.status.phase in (Phase.RUNNING, Phase.QUEUED) for one in seen):
            quiet_since = None
        else:
            quiet_since = now if quiet_since is None else quiet_since
        last = (
            once
            or _all_done(seen)
            or (quiet_since is not None and now - quiet_since >= _QUIET_SECONDS)
        )
        stages = [_drawn(one) for one in seen]
        write_watch_page(
            run,
            target,
            said(seen),
            tiles(seen, site),
            stages,
            LABELS,
            [one.status for one in seen],
            None if last else every,
        )
        if last:
            say(f"{target}: {said(seen)}")
            return
        if not told:
            say(f"{target} is written anew every {every} s, for a browser to keep open")
            told = True
        time.sleep(every)


def look(run: Path) -> list[Seen]:
    """Every stage of the run's recipe, as its files and SLURM tell.

    Raises BarError if `run` is no run's folder.
    """
    statuses = {status.stage: status for status in stage_statuses(run)}
    return [
        _see(run, stage, statuses[stage.name])
        for stage in stage_graph(load_recipe(run / "recipe.yaml"))
    ]


def said(seen: Sequence[Seen]) -> str:
    """The progress of the run, in a sentence."""
    names = {
        phase: [one.stage.name for one in seen if one.status.phase is phase] for phase in Phase
    }
    words = [f"{len(names[Phase.DONE])} of {len(seen)} stages are done"]
    for phase, verb in ((Phase.RUNNING, "running"), (Phase.STOPPED, "stopped before the end")):
        if names[phase]:
            words.append(f"{verb}: {', '.join(names[phase])}")
    if not _all_done(seen) and not names[Phase.RUNNING] + names[Phase.QUEUED]:
        words.append("nothing is at work")
    return "; ".join(words) + "."


def tiles(seen: Sequence[Seen], site: Site | None) -> list[tuple[str, str]]:
    """The few numbers to see first, each with what it is."""
    done = sum(one.status.phase is Phase.DONE for one in seen)
    found = [(f"{done} / {len(seen)}", "stages done")]
    left, unknown = time_left(seen)
    if left > 0:
        found.append(
            (
                f"≥ {duration(left)}",
                "left, by what stages say and others took"
                + (f"; without {', '.join(unknown)}" if unknown else ""),
            )
        )
    hours = device_hours(seen)
    found.append(
        (
            f"{hours:.2f}" if hours < 100 else f"{hours:,.0f}",
            "GPU-hours so far (on a CPU: hours of processes)",
        )
    )
    if site is not None and site.gpu_hour_price is not None:
        found.append(
            (
                f"{hours * site.gpu_hour_price:,.2f} {site.currency}",
                f"at {site.gpu_hour_price:g} {site.currency} an hour of a GPU",
            )
        )
    return found


def time_left(seen: Sequence[Seen]) -> tuple[float, list[str]]:
    """Seconds to the end at the least, and the stages that they don't count.

    As if every stage began when its inputs are done. A running one tells how long it still takes;
    one that waits takes what those of its kind took in this run. Where there is none it isn't
    counted.
    """
    took: dict[str, list[float]] = {}
    for one in seen:
        if one.status.phase is Phase.DONE:
            took.setdefault(one.stage.KIND, []).append(one.seconds)
    ends: dict[str, float] = {}
    unknown = []
    for one in seen:
        own: float | None = 0.0
        if one.status.phase is not Phase.DONE:
            own = one.status.seconds_left
            if own is None and one.stage.KIND in took:
                own = max(0.0, median(took[one.stage.KIND]) - one.seconds)
            if own is None:
                unknown.append(one.stage.name)
        begins = max((ends[name] for name in one.stage.inputs.values()), default=0.0)
        ends[one.stage.name] = begins + (own or 0.0)
    return max(ends.values()), unknown


def device_hours(seen: Sequence[Seen]) -> float:
    """Hours of devices that finished and running stages have had; conversions need none."""
    return sum(one.seconds * one.processes for one in seen if one.stage.ON_GPU) / 3600


def _all_done(seen: Sequence[Seen]) -> bool:
    return all(one.status.phase is Phase.DONE for one in seen)


def _see(run: Path, stage: Stage, status: StageStatus) -> Seen:
    done = read_done(run / stage.name)
    if status.phase is Phase.DONE and done is not None:
        return Seen(stage, status, done["seconds"], done["layout"]["processes"], done)
    if status.phase is not Phase.RUNNING:
        return Seen(stage, status, 0.0, stage.layout.processes, {})
    began = begun_at(run, stage.name)
    metrics = read_metrics(run / stage.name)
    return Seen(
        stage,
        status,
        0.0 if began is None else max(0.0, time.time() - began),
        stage.layout.processes,
        metrics[-1] if metrics else {},
    )


def _drawn(one: Seen) -> dict[str, Any]:
    """What the picture of the graph shows of a stage."""
    return one.facts | {
        "stage": one.stage.name,
        "kind": one.stage.KIND,
        "seconds": one.seconds,
        "state": one.status.phase.value,
    }
