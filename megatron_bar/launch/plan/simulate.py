"""A recipe played through on a cluster whose nodes fail and whose queue makes jobs wait."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from megatron_bar.costs.machine import FileSystem
from megatron_bar.launch.plan.failures import Attempt, Work, attempt
from megatron_bar.runtime.console import progress
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.plan import StagePlan

# 419 unforeseen interruptions of 16,384 H100 in 54 days: The Llama 3 Herd of Models, 2024, 3.3.4.
NODE_MTBF_HOURS = 54 * 24 * 16_384 / 419 / 8
_VAIN = 10  # at so many times its mean time between failures a job comes through once in 22,000


@dataclass(frozen=True)
class Cluster:
    """The nodes that a run has to itself, and what happens to them. Times are in seconds."""

    nodes: int
    gpus_per_node: int
    mtbf: float = NODE_MTBF_HOURS * 3600  # of one node
    queue_wait: float = 600.0  # mean wait of a job that has been queued, also when nodes are free
    start: float = 300.0  # from a job's start to its first step
    limit: float = math.inf  # that a job may run
    file_system: FileSystem = field(default_factory=FileSystem)  # that takes saved states


@dataclass(frozen=True)
class Job:
    """A stage as the cluster sees it."""

    name: str
    inputs: tuple[str, ...]
    nodes: int  # with GPUs; 0 for work that CPU nodes do, of which there are enough
    work: Work

    def mtbf(self, cluster: Cluster) -> float:
        return cluster.mtbf / max(self.nodes, 1)


@dataclass
class Outcome:
    """One run of all jobs: when it ended, and GPU-seconds by what they went into."""

    seconds: float = 0.0
    failures: int = 0
    computed: float = 0.0
    redone: float = 0.0
    saving: float = 0.0
    starting: float = 0.0

    def add(self, part: Attempt, gpus: int) -> None:
        self.failures += part.failed
        self.computed += part.kept * gpus
        self.redone += part.redone * gpus
        self.saving += part.saving * gpus
        self.starting += part.starting * gpus

    @property
    def lost(self) -> float:
        """GPU-seconds that went into something else than the model."""
        return self.redone + self.saving + self.starting


def jobs_of(plans: Sequence[StagePlan], cluster: Cluster) -> list[Job]:
    """The jobs of a plan, in its order.

    Raises BarError for one that needs more nodes than there are, whose time isn't known, or that
    would hardly ever come from one save to the next.
    """
    jobs = []
    for plan in plans:
        stage = plan.stage
        if plan.seconds is None:
            raise BarError(f"--simulate: the time of {stage.name} isn't known; the plan says why")
        nodes = math.ceil(plan.gpus / cluster.gpus_per_node) if stage.ON_GPU else 0
        if nodes > cluster.nodes:
            raise BarError(
                f"--nodes {cluster.nodes}: {stage.name} needs {nodes} of "
                f"{cluster.gpus_per_node} GPUs"
            )
        job = Job(stage.name, tuple(stage.inputs.values()), nodes, _work(plan, cluster))
        _check_progress(job, cluster)
        jobs.append(job)
    return jobs


def _check_progress(job: Job, cluster: Cluster) -> None:
    """Raise BarError for a job of which a simulation might not end."""
    work = job.work
    cycle = cluster.start + min(work.interval, work.seconds) + work.pause + work.delay
    if cycle > min(cluster.limit, _VAIN * job.mtbf(cluster)):
        raise BarError(
            f"--simulate: {job.name} takes {cycle / 3600:.1f} h from a start to its first save, "
            f"and a job may run for {cluster.limit / 3600:.1f} h with a failure every "
            f"{job.mtbf(cluster) / 3600:.1f} h in the mean; save more often"
        )


def _work(plan: StagePlan, cluster: Cluster) -> Work:
    training, seconds = plan.training, plan.seconds
    assert seconds is not None  # `jobs_of` asks for all
    if training is None or not plan.steps:
        return Work(seconds)
    interval = training.save_every * seconds / plan.steps
    if training.save_every_minutes is not None:
        interval = min(interval, 60 * training.save_every_minutes)
    nodes = math.ceil(plan.stage.layout.processes / cluster.gpus_per_node)
    writing = cluster.file_system.seconds(plan.saved_state, nodes)
    if training.save_async:
        return Work(seconds, interval, delay=writing)
    return Work(seconds, interval, pause=writing)


def simulate(jobs: Sequence[Job], cluster: Cluster, trials: int, seed: int) -> list[Outcome]:
    """Outcomes of `trials` runs with other failures and waits each; the same for the same seed."""
    outcomes = []
    with progress("runs", trials) as advance:
        for trial in range(trials):
            outcomes.append(_Run(jobs, cluster, random.Random(f"{seed} {trial}")).play())
            advance(1)
    return outcomes


@dataclass
class _Run:
    """One run. A job is queued once its inputs stand, and again after each end that isn't its last.

    Jobs whose wait is over start in the recipe's order, as far as nodes are free.
    """

    jobs: Sequence[Job]
    cluster: Cluster
    rng: random.Random
    outcome: Outcome = field(default_factory=Outcome)

    def play(self) -> Outcome:
        place = {job.name: number for number, job in enumerate(self.jobs)}
        left = [job.work.seconds for job in self.jobs]
        missing = [{name for name in job.inputs if name in place} for job in self.jobs]
        free, now = self.cluster.nodes, 0.0
        ready: list[int] = []
        order = itertools.count()
        # When, and which job: its attempt ends, or, without one, its wait.
        events: list[tuple[float, int, int, Attempt | None]] = []

        def queue(number: int) -> None:
            wait = (
                self.rng.expovariate(1 / self.cluster.queue_wait)
                if (self.cluster.queue_wait)
                else 0.0
            )
            heapq.heappush(events, (now + wait, next(order), number, None))

        for number in range(len(self.jobs)):
            if not missing[number]:
                queue(number)
        while events:
            now, _, number, ended = heapq.heappop(events)
            job = self.jobs[number]
            if ended is None:
                ready.append(number)
            else:
                free += job.nodes
                left[number] -= ended.kept
                self.outcome.add(ended, job.nodes * self.cluster.gpus_per_node)
                if left[number] > 1e-6 or ended.failed:
                    queue(number)
                else:
                    for later, inputs in enumerate(missing):
                        if job.name in inputs:
                            inputs.remove(job.name)
                            if not inputs:
                                queue(later)
            for number in sorted(ready):
                job = self.jobs[number]
                if job.nodes <= free:
                    ready.remove(number)
                    free -= job.nodes
                    part = attempt(
                        job.work,
                        left[number],
                        self.cluster.start,
                        job.mtbf(self.cluster),
                        self.cluster.limit,
                        self.rng,
                    )
                    heapq.heappush(events, (now + part.seconds, next(order), number, part))
        self.outcome.seconds = now
        return self.outcome


def quantiles(values: Sequence[float]) -> Mapping[int, float]:
    """The 10th, 50th and 90th percentile, each of the values themselves."""
    ranked = sorted(values)
    return {
        percent: ranked[min(len(ranked) * percent // 100, len(ranked) - 1)]
        for percent in (10, 50, 90)
    }
