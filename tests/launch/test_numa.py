"""Which cores a rank is bound to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_bar.launch.slurm.numa import cpus_of_ranks

_GPUS = """0, GPU-a, 00000000:18:00.0
1, GPU-b, 00000000:9A:00.0"""


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Path:
    """Two GPUs at two NUMA nodes of four cores, of which the job has two each."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho '{_GPUS}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 4, 5})
    for bus, node, cores in (("0000:18:00.0", 1, "4-5,6,7"), ("0000:9a:00.0", 0, "0-3")):
        for path, text in (
            (f"bus/pci/devices/{bus}/numa_node", str(node)),
            (f"devices/system/node/node{node}/cpulist", f"{cores}\n"),
        ):
            (tmp_path / path).parent.mkdir(parents=True)
            (tmp_path / path).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    "visible, ranks, cpus",
    [
        (None, 2, [{4, 5}, {2, 3}]),
        ("1,0", 2, [{2, 3}, {4, 5}]),
        ("GPU-b", 1, [{2, 3}]),
        (None, 3, None),  # more ranks than GPUs
    ],
)
def test_a_rank_gets_the_cores_beside_its_gpu(visible, ranks, cpus, machine, monkeypatch):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cpus_of_ranks(ranks, machine) == cpus


def test_nothing_is_bound_where_there_is_nothing_to_choose(machine, monkeypatch):
    for numa_node in machine.rglob("numa_node"):
        numa_node.write_text("-1")
    assert cpus_of_ranks(2, machine) is None
    monkeypatch.setenv("PATH", str(machine))  # no nvidia-smi
    assert cpus_of_ranks(2, machine) is None
