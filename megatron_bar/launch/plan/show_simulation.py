"""A simulated run as tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import fmean

from rich.table import Table

from megatron_bar.launch.plan.failures import best_interval, expected_seconds
from megatron_bar.launch.plan.show_speed import new_table, readable_bytes
from megatron_bar.launch.plan.simulate import Cluster, Job, Outcome, quantiles
from megatron_bar.stages.plan import StagePlan


def saving_table(plans: Sequence[StagePlan], jobs: Sequence[Job], cluster: Cluster) -> Table:
    """A table of how often each stage saves, how often it best would, and what that adds.

    The best interval is for saves that stop the work.
    """
    table = new_table(
        "stage",
        "nodes",
        "fails every",
        "state",
        "a rank's",
        "a save takes",
        "saves every",
        "best every",
        "adds",
        "adds at best",
    )
    for plan, job in zip(plans, jobs, strict=True):
        if plan.training is None or not plan.steps or plan.seconds is None:
            continue
        work, mtbf = job.work, job.mtbf(cluster)
        step = plan.seconds / plan.steps
        writing = work.pause or work.delay
        best = best_interval(writing, mtbf)
        steps = max(min(round(best / step), plan.steps), 1)
        at_best = dataclasses.replace(work, interval=steps * step)
        table.add_row(
            job.name,
            str(job.nodes),
            _time(mtbf),
            readable_bytes(plan.saved_state),
            readable_bytes(plan.saved_state / plan.stage.layout.processes),
            _time(writing),
            _interval(work.interval, step, plan.steps),
            _interval(steps * step, step, plan.steps),
            *(
                f"{expected_seconds(each, cluster.start, mtbf) / work.seconds - 1:.2%}"
                for each in (work, at_best)
            ),
        )
    return table


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """The finish, failures and GPU-hours of runs: mean, and the 10th, 50th and 90th percentile."""
    table = new_table("run", "mean", "10 %", "50 %", "90 %")
    hour, day = 3600.0, 86_400.0
    for what, unit, values in (
        ("days until it ends", day, [outcome.seconds for outcome in outcomes]),
        ("failures", 1.0, [float(outcome.failures) for outcome in outcomes]),
        ("GPU-hours computed", hour, [outcome.computed for outcome in outcomes]),
        ("GPU-hours lost", hour, [outcome.lost for outcome in outcomes]),
        ("  work done again", hour, [outcome.redone for outcome in outcomes]),
        ("  saves", hour, [outcome.saving for outcome in outcomes]),
        ("  starts", hour, [outcome.starting for outcome in outcomes]),
    ):
        table.add_row(
            what,
            *(f"{value / unit:,.2f}" for value in (fmean(values), *quantiles(values).values())),
        )
    return table


def assumptions(cluster: Cluster, trials: int) -> str:
    limit = "no time limit" if cluster.limit == math.inf else f"{_time(cluster.limit)} a job"
    return (
        f"Played {trials} times: {cluster.nodes} nodes of {cluster.gpus_per_node} GPUs, each of "
        f"which fails every {_time(cluster.mtbf)} in the mean, at random, and is whole again at "
        "once; jobs take whole nodes, start in the recipe's order, wait "
        f"{_time(cluster.queue_wait)} in the mean each time they are queued and "
        f"{_time(cluster.start)} before their first step; {limit}; states are written at "
        f"{cluster.file_system.total:g} GB/s in all, and at most {cluster.file_system.node:g} by a "
        "node. Stages without saves begin anew."
    )


def _interval(seconds: float, step: float, steps: int) -> str:
    every = seconds / step
    return "its end" if every >= steps else f"{_time(seconds)} ({every:,.0f} steps)"


def _time(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
