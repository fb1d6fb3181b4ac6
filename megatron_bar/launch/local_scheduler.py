"""Stages of a run side by side on this machine, as its GPUs, cores and their inputs allow."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.launch import processes
from megatron_bar.launch.logs import log_path
from megatron_bar.launch.processes import Job, JobFailed
from megatron_bar.methods.run import run_stage
from megatron_bar.runtime.console import progress, say
from megatron_bar.runtime.devices import visible_gpus
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.pool import cores
from megatron_bar.runtime.stop_file import stop_file_in
from megatron_bar.runtime.stopping import ContinueLater, StopSignals
from megatron_bar.stages.context import read_done, replaced_folder
from megatron_bar.stages.stage import Stage


class StagesFailed(BarError):
    """Some stages of a run failed; `failures` has a line for each."""

    def __init__(self, failures: Sequence[str]) -> None:
        super().__init__("; ".join(failures))
        self.failures = list(failures)


@dataclass
class _Running:
    stage: Stage
    job: Job
    started: float
    gpus: list[str]


class LocalScheduler:
    """Starts each stage as soon as its inputs are done, and the processes and GPUs are free.

    Where there are GPUs, stages that compute on them have theirs to themselves, one a process. The
    others see none and run beside them.
    """

    def __init__(self, run: Path, stages: list[Stage], jobs: int | None) -> None:
        self.run = run
        self.waiting = list(stages)
        self.jobs = jobs
        self.gpus = visible_gpus()
        self.free = list(self.gpus)
        self.running: list[_Running] = []
        self.failed: list[str] = []
        self.stopped: list[str] = []
        self.asked = False  # to stop, all of it

    def run_all(self) -> None:
        try:
            with progress("stages", len(self.waiting)) as advance, StopSignals() as signals:
                while self.waiting or self.running:
                    self._pass_on(signals.received)
                    while stage := self._startable():
                        self._start(stage)
                    for _ in self._ended():
                        advance(note=" ".join(r.stage.name for r in self.running))
                    time.sleep(processes.POLL_SECONDS)
        finally:
            for running in self.running:
                running.job.stop()
        if self.failed:
            raise StagesFailed(self.failed)
        if self.stopped or self.asked:
            raise ContinueLater(f"{self.run}: {', '.join(self.stopped) or 'no stage'} was stopped")

    def _pass_on(self, number: int | None) -> None:
        """Let what runs save and end where it is to stop, by a signal or a stop file.

        If that is for the whole run, nothing more is started.
        """
        if number is not None or stop_file_in(self.run):
            self.asked = True
            self.waiting.clear()
        for running in self.running:
            if running.job.asked_to_stop:
                continue
            if self.asked or stop_file_in(self.run / running.stage.name):
                say(f"{running.stage.name}: asked to save and stop; Ctrl-C ends it at once")
                running.job.ask_to_stop(number or signal.SIGUSR1)

    def _startable(self) -> Stage | None:
        """The first stage whose inputs are done, and which fits beside those that run."""
        unfinished = {s.name for s in self.waiting} | {r.stage.name for r in self.running}
        for stage in self.waiting:
            if self._fits(stage) and not unfinished & set(stage.inputs.values()):
                return stage
        return None

    def _fits(self, stage: Stage) -> bool:
        """Whether there are GPUs and processes for it. One with too many processes runs alone.

        Without a limit of the user's, processes on GPUs don't count: these limit them.
        """
        if self._needed_gpus(stage) > len(self.free):
            return False
        side_by_side = [stage, *(running.stage for running in self.running)]
        if self.jobs is None:
            side_by_side = [one for one in side_by_side if not self._needed_gpus(one)]
        limit = self.jobs or cores()
        return sum(one.layout.processes for one in side_by_side) <= limit or not self.running

    def _needed_gpus(self, stage: Stage) -> int:
        """One a process; fewer only where ranks share them, or there are none."""
        return min(stage.layout.processes, len(self.gpus)) if stage.ON_GPU else 0

    def _start(self, stage: Stage) -> None:
        self.waiting.remove(stage)
        log = log_path(self.run, stage.name)
        log.parent.mkdir(exist_ok=True)
        log.unlink(missing_ok=True)
        needed = self._needed_gpus(stage)
        gpus, self.free = self.free[:needed], self.free[needed:]
        job = processes.start(
            run_stage,
            self.run,
            stage.name,
            processes=stage.layout.processes,
            log=log,
            gpus=gpus if self.gpus else None,
        )
        self.running.append(_Running(stage, job, time.monotonic(), gpus))

    def _ended(self) -> Iterator[_Running]:
        for running in list(self.running):
            if outcome := self._outcome(running):
                self.running.remove(running)
                self.free += running.gpus
                say(f"{running.stage.name}: {outcome}")
                yield running

    def _outcome(self, running: _Running) -> str | None:
        """What became of a stage, in words for the user, and noted; None while it runs."""
        name = running.stage.name
        try:
            if not running.job.poll():
                return None
        except ContinueLater:
            self.stopped.append(name)
            self._drop_dependents(name)
            return "stopped, to go on later"
        except JobFailed as error:
            self.failed.append(f"stage {name}: {error} (log: {log_path(self.run, name)})")
            self._drop_dependents(name)
            kept = replaced_folder(self.run, name)
            return "failed" + (
                f"; its last result is kept in {kept}, and back with the settings it was made with"
                if kept.is_dir()
                else ""
            )
        seconds = time.monotonic() - running.started
        summary = (read_done(self.run / name) or {}).get("summary", "")
        return f"done in {seconds:.0f} s{summary and ' - '}{summary}"

    def _drop_dependents(self, undone: str) -> None:
        dropped = {undone}
        for stage in list(self.waiting):  # in the graph's order, so one pass finds all
            if dropped & set(stage.inputs.values()):
                dropped.add(stage.name)
                self.waiting.remove(stage)
