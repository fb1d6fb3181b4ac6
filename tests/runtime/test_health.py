"""Machines that are measured before the first step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_bar.launch import processes
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.health import HEALTH_CHECK, Measured, slow_ranks
from megatron_bar.runtime.layout import Layout
from megatron_bar.runtime.machine_check import _measure, check_health

_WELL = Measured("n1", products=640.0, exchange=42.0, clock=1755.0, writing=1.2)


@pytest.mark.parametrize(
    "figures, said",
    [
        ({}, None),
        ({"products": 520.0}, None),  # a fifth slower
        ({"products": 400.0}, "products 400 TFLOP/s, and 640 is the median"),
        ({"exchange": 20.0}, "exchange 20 GB/s, and 42 is the median"),
        ({"clock": 1200.0}, "clock 1.2e+03 MHz"),
        ({"writing": 0.6}, None),
        ({"writing": 0.3}, "writing 0.3 GB/s, and 1.2 is the median"),
        ({"products": None, "writing": None}, None),
    ],
)
def test_a_rank_that_is_slower_than_most_is_named(figures, said):
    changed = dataclasses.replace(_WELL, host="n2", **figures)
    slow = slow_ranks([_WELL, _WELL, changed, _WELL])
    assert slow.keys() == ({2} if said else set())
    if said:
        assert slow[2][0].startswith("rank 2 on n2 is slow: ") and said in slow[2][0]


def _checks(folder: Path) -> None:
    """Four ranks on two nodes, of which rank 3 computes at a tenth of what it does."""

    def with_a_slow_rank(folder: Path, hosts: list[str]) -> Measured:
        hosts = ["n1", "n1", "n2", "n2"]
        found = _measure(folder, hosts)
        assert found.products and found.exchange and found.clock is None
        assert (found.writing is not None) == (dist.get_rank() in (0, 2))
        slow = dist.get_rank() == 3
        return dataclasses.replace(_WELL, host=found.host, products=64.0 if slow else 640.0)

    with process_groups(Layout(4)):
        check_health(folder, with_a_slow_rank)


@pytest.mark.distributed
@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["warn", "refuse"])
def test_ranks_measure_and_a_slow_one_is_told_or_ended(mode, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    folder.mkdir()
    job = processes.start(_with_mode, mode, folder, processes=4, log=log)
    if mode == "warn":
        job.wait()
    else:
        with pytest.raises(processes.JobFailed, match="SystemExit: 71"):
            job.wait()
    shown = log.read_text()
    assert "health check: 4 ranks, products 64 to 640 TFLOP/s, exchange 42 to 42 GB/s" in shown
    assert "rank 3 on n2 is slow: products 64 TFLOP/s, and 640 is the median" in shown
    assert not list(folder.iterdir())


def _with_mode(mode: str, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HEALTH_CHECK, mode)
        _checks(folder)


def test_nothing_is_measured_unless_it_is_asked_for(tmp_path, monkeypatch):
    def measures(folder: Path, hosts: list[str]) -> Measured:
        raise AssertionError

    with process_groups(Layout()):
        for mode in (None, "", "off", "warn"):  # a lone rank has nobody to be compared with
            monkeypatch.delenv(HEALTH_CHECK, raising=False)
            if mode is not None:
                monkeypatch.setenv(HEALTH_CHECK, mode)
            check_health(tmp_path, measures)
        monkeypatch.setenv(HEALTH_CHECK, "maybe")
        with pytest.raises(BarError, match="should be one of off, warn, refuse"):
            check_health(tmp_path, measures)
