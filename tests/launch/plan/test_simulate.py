"""Simulated runs: closed forms where there are any, and what must hold where there are none."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, stdev

import pytest

from megatron_bar.cli import main
from megatron_bar.launch.plan.failures import Work, attempt, best_interval, expected_seconds
from megatron_bar.launch.plan.simulate import Cluster, Job, simulate

BAR_7B = Path(__file__).parents[3] / "examples" / "bar-7b.yaml"
CLUSTER = Cluster(nodes=4, gpus_per_node=8, mtbf=math.inf, queue_wait=0, start=10)


def job(name: str, nodes: int, seconds: float, *inputs: str, **saves) -> Job:
    return Job(name, inputs, nodes, Work(seconds, **saves))


@pytest.mark.slow
@pytest.mark.parametrize(
    "seconds, interval, pause, start",
    [
        (1000, 50, 5, 20),
        (1000, 300, 5, 0),  # the last interval is a shorter one
        (100, math.inf, 0, 15),  # nothing is saved
    ],
)
def test_a_job_takes_what_dalys_formula_says(seconds, interval, pause, start):
    """Within 4 standard errors, with the wait after each failure and the first start."""
    mtbf, wait, trials = 100.0, 7.0, 4000
    cluster = Cluster(nodes=2, gpus_per_node=1, mtbf=2 * mtbf, queue_wait=wait, start=start)
    outcomes = simulate([job("a", 2, seconds, interval=interval, pause=pause)], cluster, trials, 0)
    worked = [outcome.seconds - wait * (1 + outcome.failures) for outcome in outcomes]
    expected = mtbf * math.expm1(start / mtbf) + expected_seconds(
        Work(seconds, interval, pause), start, mtbf
    )
    error = math.hypot(
        stdev(worked), wait * math.sqrt(fmean(1 + outcome.failures for outcome in outcomes))
    ) / math.sqrt(trials)
    assert fmean(worked) == pytest.approx(expected, abs=4 * error)
    assert error < expected / 50
    for outcome in outcomes:
        assert outcome.computed == pytest.approx(2 * seconds)


def test_the_best_interval_is_the_cheapest():
    """Daly's estimate costs at most a thousandth more than the best of a fine search."""
    for pause, mtbf in ((30.0, 36_000.0), (60.0, 3600.0), (300.0, 7200.0)):

        def cost(interval: float, pause: float = pause, mtbf: float = mtbf) -> float:
            whole = interval * round(1e6 / interval)
            return expected_seconds(Work(whole, interval, pause), 60.0, mtbf) / whole

        best = min(map(cost, (2.0 ** (power / 8) for power in range(24, 120))))
        assert cost(best_interval(pause, mtbf)) < 1.001 * best
    assert best_interval(100.0, 50.0) == 50.0


def test_without_failures_a_run_takes_its_longest_way():
    """20 and 5 wait for 10; all three fit beside each other but for one of two nodes too many."""
    jobs = [job("a", 1, 10), job("b", 2, 20, "a"), job("c", 3, 5, "a"), job("d", 0, 1, "b", "c")]
    (outcome,) = simulate(jobs, CLUSTER, 1, 0)
    # a, then b; c finds two of its three nodes taken until b ends; each starts for 10 s.
    assert outcome.seconds == (10 + 10) + (10 + 20) + (10 + 5) + (10 + 1)
    assert outcome.computed == 8 * (1 * 10 + 2 * 20 + 3 * 5)
    assert outcome.starting == 8 * 10 * (1 + 2 + 3)
    assert outcome.redone == outcome.saving == outcome.failures == 0


def test_a_time_limit_costs_starts_but_no_work():
    jobs = [job("a", 1, 100, interval=7.0, pause=1.0)]
    cluster = Cluster(nodes=1, gpus_per_node=1, mtbf=math.inf, queue_wait=0, start=5, limit=40)
    (outcome,) = simulate(jobs, cluster, 1, 0)
    assert outcome.redone == 0 and outcome.computed == pytest.approx(100)
    assert outcome.starting == 5 * 4  # some 30 of 40 s are work


def test_a_state_that_is_written_meanwhile_counts_once_it_is_whole():
    """Killed 25 s after its start, two of whose states were begun at 10 and 20 s, one is whole."""

    class Fails:
        def expovariate(self, rate: float) -> float:
            return 25.0

    part = attempt(Work(100, 10.0, delay=6.0), 100, 0.0, 50.0, math.inf, Fails())
    assert (part.kept, part.redone, part.failed) == (10.0, 15.0, True)


@pytest.mark.slow
def test_the_published_recipe_is_played(capsys):
    command = [
        "plan",
        str(BAR_7B),
        "--simulate",
        "--trials",
        "20",
        "--time-limit",
        "24",
        "domains.math.tasks=[]",
    ]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "math/midtrain" in shown and "GPU-hours lost" in shown and "8 nodes of 8 GPUs" in shown
    assert main(command) == 0
    assert capsys.readouterr().out == shown  # the same failures and waits
    for options, message in (
        (["--nodes", "2"], "--nodes 2: math/midtrain needs 8 of 8 GPUs"),
        (["--trials", "0"], "--trials must be more than 0"),
        (["--queue-wait", "-1"], "--queue-wait must be 0 or more"),
        (["--node-mtbf", "0.1"], "save more often"),
    ):
        assert main([*command, *options]) == 1
        assert message in capsys.readouterr().err
