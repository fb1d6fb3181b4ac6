"""Jobs on GPUs, as far as that shows without one: a machine that says that it has some."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
import yaml

from megatron_bar.cli import main
from megatron_bar.launch import local_scheduler, processes
from megatron_bar.launch.local_scheduler import LocalScheduler
from megatron_bar.launch.processes import JobFailed
from megatron_bar.runtime.devices import check_ranks, visible_gpus
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.stage import Stage


@pytest.fixture
def gpus(monkeypatch):
    """Makes this process see so many GPUs; the programs that it starts see what there is."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def see(count: int, listed: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        if listed is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)

    return see


def test_gpus_have_the_names_that_the_user_lists(gpus):
    gpus(2)
    assert visible_gpus() == ["0", "1"]
    gpus(2, "6, GPU-8932f937")
    assert visible_gpus() == ["6", "GPU-8932f937"]
    gpus(1, "5,-1,3")  # CUDA ends the list at what it doesn't know
    assert visible_gpus() == ["5"]


def test_more_ranks_than_gpus_are_one_line(gpus, monkeypatch):
    gpus(2, "4,5")
    check_ranks(2)
    message = r"^3 processes need a GPU each, and 2 can be seen here \(CUDA_VISIBLE_DEVICES=4,5\)"
    with pytest.raises(BarError, match=message):
        check_ranks(3)
    with pytest.raises(BarError, match=message):
        processes.start(print, processes=3)
    monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1")
    check_ranks(3)
    gpus(0)
    monkeypatch.delenv("NCCL_MULTI_RANK_GPU_ENABLE")
    check_ranks(64)  # on a CPU there is no such limit


def test_run_says_so_before_anything_is_written(gpus, tmp_path, capsys):
    training = {
        "steps": 1,
        "sequence_length": 32,
        "global_batch_size": 4,
        "micro_batch_size": 1,
        "data": [{"toy": "general", "count": 20}],
        "layout": {"processes": 4},
    }
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "r",
                "runs": str(tmp_path / "runs"),
                "domains": {"math": {"sft": training}},
                "pretrain": {"chat": [{"toy": "general", "count": 20}], "training": training},
                "route": {
                    "fraction": 0.5,
                    "training": {**training, "layout": {"processes": 2}, "data": []},
                },
            }
        )
    )
    gpus(2)
    assert main(["run", str(tmp_path / "r.yaml"), "--dry-run"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "need a GPU each" in line] == [
        "megatron-bar: base: 4 processes need a GPU each, and 2 can be seen here; make the layout "
        "smaller, or use a machine with more (so in math/sft)"
    ]
    assert not (tmp_path / "runs").exists()


def _tell(out: Path) -> None:
    """Write what this rank was started with, and meet the others."""
    environment = dict(os.environ)
    with process_groups(Layout(2)):
        total = torch.ones(1)
        dist.all_reduce(total)
        (out / environment["RANK"]).write_text(
            json.dumps(
                {
                    "starter": os.getppid(),
                    "visible": environment.get("CUDA_VISIBLE_DEVICES"),
                    "preloaded": "megatron_bar.launch.preload" in sys.modules,
                    "sum": total.item(),
                }
            )
        )


@pytest.mark.distributed
def test_beside_gpus_each_rank_is_a_program_of_its_own(gpus, tmp_path):
    """None is forked from a server that may have started CUDA, and each sees the job's GPUs."""
    gpus(4)
    log = tmp_path / "log"
    processes.start(
        _tell, tmp_path, processes=2, gpus=["2", "GPU-1"], log=log, timeout_seconds=120
    ).wait()
    told = [json.loads((tmp_path / rank).read_text()) for rank in "01"]
    assert told == 2 * [
        {"starter": os.getpid(), "visible": "2,GPU-1", "preloaded": False, "sum": 2.0}
    ]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def _fail() -> None:
    print("about to fail")
    raise BarError("what a rank finds wrong")


@pytest.mark.distributed
def test_what_such_a_rank_says_arrives(gpus, tmp_path):
    gpus(1)
    job = processes.start(_fail, log=tmp_path / "log", timeout_seconds=60)
    with pytest.raises(JobFailed, match=r"^what a rank finds wrong$"):
        job.wait()
    assert "about to fail" in (tmp_path / "log").read_text()


@dataclass(frozen=True)
class _OnGpu(Stage):
    ON_GPU: ClassVar[bool] = True


class _Machine:
    """Takes the place of `processes.start`: jobs that end in the order they began, one a poll."""

    def __init__(self) -> None:
        self.running: list[tuple[str, list[str] | None]] = []
        self.side_by_side: list[dict[str, list[str] | None]] = []

    def start(self, function, run, name, processes, log, gpus) -> _Job:
        self.running.append((name, gpus))
        return _Job(self, name)


@dataclass
class _Job:
    machine: _Machine
    name: str

    def poll(self) -> bool:
        running = self.machine.running
        self.machine.side_by_side.append(dict(running))
        if running[0][0] != self.name:
            return False
        del running[0]
        return True

    def stop(self) -> None:
        pass


@pytest.fixture
def ran(tmp_path, monkeypatch) -> Callable[..., list[dict]]:
    """Runs STAGES; returns the jobs that ran at once with their GPUs, each time that it changed."""
    machine = _Machine()
    monkeypatch.setattr(local_scheduler.processes, "start", machine.start)
    monkeypatch.setattr(local_scheduler.processes, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(local_scheduler, "read_done", lambda folder: {})
    monkeypatch.setattr(local_scheduler, "cores", lambda: 2)

    def run(jobs: int | None = None) -> list[dict]:
        LocalScheduler(tmp_path, STAGES, jobs).run_all()
        return [
            now
            for i, now in enumerate(machine.side_by_side)
            if i == 0 or now != machine.side_by_side[i - 1]
        ]

    return run


STAGES = [
    _OnGpu("a", layout=Layout(2)),
    _OnGpu("b"),
    _OnGpu("c"),
    _OnGpu("d", layout=Layout(3)),
    Stage("x"),
    Stage("y"),
    Stage("z", {"start": "d"}),
]


def test_each_job_has_gpus_of_its_own_and_the_rest_runs_beside(gpus, ran):
    gpus(3, "1,3,6")
    seen = ran()
    assert seen[0] == {"a": ["1", "3"], "b": ["6"], "x": [], "y": []}
    for now in seen:
        taken = [gpu for of_one in now.values() for gpu in of_one]
        assert len(taken) == len(set(taken)) <= 3
    assert {name: set(of_one) for now in seen for name, of_one in now.items()} == {
        "a": {"1", "3"},
        "b": {"6"},
        "c": {"1"},
        "d": {"1", "3", "6"},
        "x": set(),
        "y": set(),
        "z": set(),
    }
    assert next(i for i, now in enumerate(seen) if "z" in now) > max(
        i for i, now in enumerate(seen) if "d" in now
    )


def test_a_limit_of_the_users_counts_processes_on_gpus_too(gpus, ran):
    gpus(3)
    seen = ran(jobs=2)
    sizes = {stage.name: stage.layout.processes for stage in STAGES}
    assert all(sum(map(sizes.get, now)) <= 2 or len(now) == 1 for now in seen)
    assert seen[0] == {"a": ["0", "1"]}


def test_without_gpus_cores_are_shared_out_and_nothing_is_hidden(gpus, ran):
    gpus(0)
    seen = ran()
    assert seen[0] == {"a": None}
    assert {"d": None} in seen  # which has more processes than there are cores
    assert all(sum(name != "d" for name in now) <= 2 for now in seen)


def test_ranks_that_share_gpus_take_those_there_are(gpus, ran, monkeypatch):
    gpus(1)
    monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1")
    assert {"a": ["0"], "x": [], "y": []} in ran()
