"""Runs of a small recipe, on this machine or in a SLURM, and the faults that can strike them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
from omegaconf import OmegaConf

from megatron_bar.launch.slurm.failed_nodes import failed_nodes_path
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import load_recipe
from megatron_bar.stages.context import DONE_FILE
from megatron_bar.training.saved import FOLDER, saved_steps
from tests.slurm.cluster import NODES, Cluster
from tests.slurm.conftest import write_site
from tests.survivors import assert_group_ends

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "examples" / "toy-fast.yaml"
_TRAININGS = (
    "pretrain.training",
    "domains.code.midtrain",
    "domains.code.sft",
    "domains.safety.sft",
    "route.training",
)
_SAVE_EVERY = 5  # steps, of a run with all of them
_DAY = 86400.0
# A job that is queued again waits for some seconds; after more it needs a node that is left out.
_IN_VAIN_SECONDS = 30.0
Fault = Callable[[random.Random], bool]  # strikes; False where it has nothing to strike


class LocalRun:
    """`megatron-bar run` in a session of its own."""

    def __init__(self, folder: Path, name: str, steps: float) -> None:
        self.run, self.log = folder / name, folder / f"{name}.txt"
        self._words = _words(self.run, steps)
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "megatron_bar", "run", *self._words],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_running(self) -> bool:
        assert self._process is not None
        return self._process.poll() is None

    def end(self) -> bool:
        """Whether it is done; nothing may be left of the attempt."""
        assert self._process is not None
        assert_group_ends(self._process.pid, seconds=60)
        return self._process.returncode == 0

    def stop(self) -> None:
        if self._process is not None and self.is_running():
            self._strike(signal.SIGKILL)

    def faults(self) -> dict[str, Fault]:
        return {
            "a rank is killed": self._kill_rank,
            "the node is lost": lambda _: self._strike(signal.SIGKILL),
            "cancelled": lambda _: self._strike(signal.SIGTERM),
            "preempted": lambda _: self._strike(signal.SIGUSR1),
            "the disk is full": lambda _: fill_disk([rank.pid for rank in self._ranks()]),
            "a file is torn": self._tear_file,
            "the clock jumps": lambda chance: shift_times(self.run, chance),
        }

    def _strike(self, number: int) -> bool:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        if number == signal.SIGKILL:
            self._process.wait()
        return True

    def _ranks(self) -> list[psutil.Process]:
        assert self._process is not None
        with contextlib.suppress(psutil.Error):
            helpers = psutil.Process(self._process.pid).children()
            return [rank for helper in helpers for rank in helper.children()]
        return []

    def _kill_rank(self, chance: random.Random) -> bool:
        ranks = self._ranks()
        if ranks:
            with contextlib.suppress(psutil.Error):
                chance.choice(ranks).kill()
        return bool(ranks)

    def _tear_file(self, chance: random.Random) -> bool:
        """The power fails while a page of the last state is on its way to the disk."""
        self._strike(signal.SIGKILL)
        return tear_state(self.run, chance)


class SlurmRun:
    """`megatron-bar submit` to a cluster of two nodes, again whenever nothing is queued."""

    def __init__(self, folder: Path, name: str, steps: float, slurm: Cluster) -> None:
        self.run, self.log = folder / name, folder / f"{name}.txt"
        self._words = _words(self.run, steps)
        self._slurm = slurm
        self._site = write_site(folder)
        self._ran = time.monotonic()  # when a job was last seen to run

    def start(self) -> None:
        with open(self.log, "ab") as log:
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "megatron_bar",
                    "submit",
                    *self._words,
                    "--site",
                    str(self._site),
                ],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=os.environ | self._slurm.environment | {"PYTHONPATH": str(ROOT)},
                check=True,
            )
        self._ran = time.monotonic()

    def is_running(self) -> bool:
        states = self._slurm.run("squeue", "-h", "-o", "%T").split()
        if "RUNNING" in states:
            self._ran = time.monotonic()
        elif time.monotonic() - self._ran > _IN_VAIN_SECONDS:
            self._let_nodes_back()
        return bool(states)

    def _let_nodes_back(self) -> None:
        """What docs/slurm.md has a user do once a node that was left out is well again."""
        failed_nodes_path(self.run).unlink(missing_ok=True)
        for job in self._slurm.jobs():
            with contextlib.suppress(subprocess.CalledProcessError):  # it has just ended
                self._slurm.run("scontrol", "update", f"JobId={job}", "ExcNodeList=")
        self._ran = time.monotonic()

    def end(self) -> bool:
        left = self._processes()
        assert not left, f"processes go on without a job: {left}"
        return all(
            (self.run / stage.name / DONE_FILE).is_file()
            for stage in stage_graph(load_recipe(RECIPE))
        )

    def stop(self) -> None:
        self._slurm.cancel_all()

    def faults(self) -> dict[str, Fault]:
        return {
            "a rank is killed": self._kill_rank,
            "the node is lost": self._lose_node,
            "cancelled": self._cancel,
            "preempted": self._preempt,
            "the disk is full": lambda _: fill_disk(self._processes()),
            "a file is torn": self._tear_file,
            "the clock jumps": lambda chance: shift_times(self.run, chance),
        }

    def _processes(self) -> list[int]:
        of_nodes = (self._slurm.processes_with(f"SLURMD_NODENAME={node}") for node in NODES)
        return sorted(set().union(*of_nodes))

    def _kill_rank(self, chance: random.Random) -> bool:
        ranks = self._processes()
        if ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(ranks), signal.SIGKILL)
        return bool(ranks)

    def _lose_node(self, chance: random.Random) -> bool:
        node = chance.choice(NODES)
        self._slurm.kill_node(node)
        time.sleep(5)
        self._slurm.start_node(node)
        return True

    def _cancel(self, chance: random.Random) -> bool:
        jobs = self._slurm.jobs()
        if jobs:
            self._slurm.run("scancel", chance.choice(jobs))
        return bool(jobs)

    def _preempt(self, chance: random.Random) -> bool:
        self._slurm.preempt_all()
        return True

    def _tear_file(self, chance: random.Random) -> bool:
        self._slurm.cancel_all()
        return tear_state(self.run, chance)


DisturbedRun = LocalRun | SlurmRun


def _words(run: Path, steps: float) -> list[str]:
    """The command line of a run that trains this share of the recipe's steps."""
    recipe = OmegaConf.structured(load_recipe(RECIPE))
    keys = []
    for training in _TRAININGS:
        whole = OmegaConf.select(recipe, f"{training}.steps")
        keys += [
            f"{training}.steps={max(1, round(steps * whole))}",
            f"{training}.save_every={max(1, round(steps * _SAVE_EVERY))}",
            f"{training}.keep=2",  # so that a damaged state doesn't end a stage
        ]
    return [str(RECIPE), f"runs={run.parent}", f"name={run.name}", *keys]


def fill_disk(processes: Sequence[int]) -> bool:
    """No file may grow any more, for these."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            psutil.Process(process).rlimit(psutil.RLIMIT_FSIZE, (512, psutil.RLIM_INFINITY))
    return bool(processes)


def tear_state(run: Path, chance: random.Random) -> bool:
    """Leave zeros in the last state of a stage that has one before it."""
    stages = [path.parent for path in run.rglob(FOLDER) if len(saved_steps(path.parent)) > 1]
    if not stages:
        return False
    stage = chance.choice(sorted(stages))
    file = chance.choice(sorted((stage / FOLDER / str(saved_steps(stage)[-1])).glob("*.distcp")))
    with open(file, "r+b") as torn:
        torn.seek(chance.randrange(file.stat().st_size))
        torn.write(bytes(512))
    return True


def shift_times(run: Path, chance: random.Random) -> bool:
    """All files get times of another day: what a clock that jumps leaves behind."""
    shift = chance.uniform(-_DAY, _DAY)
    for path in files_in(run):
        with contextlib.suppress(OSError):
            os.utime(path, (time.time() + shift,) * 2)
    return True


def files_in(run: Path) -> Iterator[Path]:
    """All files of a run that goes on: `rglob` fails where a folder is removed meanwhile."""
    for folder, _, names in os.walk(run):
        for name in names:
            yield Path(folder, name)
