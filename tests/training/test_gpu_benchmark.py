"""The command that measures a GPU against its goals runs, at a small size, on a CPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu_step
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would measure a small model")
def test_every_goal_gets_its_rows(monkeypatch, capsys):
    def here(options, who, kind):
        with process_groups(Layout()):
            return gpu_step.contestant(options, who, kind)

    monkeypatch.setattr(gpu_step, "measured_apart", here)
    monkeypatch.setattr(gpu_step, "WARM_UP", 1)
    gpu_step.main(["--goals", "--device", "cpu"])
    said = capsys.readouterr().out
    shown = [line.split() for line in said.splitlines()]
    for goal in gpu_step.GOALS:
        assert goal.name in said
    expected = [row for goal in gpu_step.GOALS for row in gpu_step.rows(goal.floors, goal.who)]
    assert ("mid", "fp8") in expected and ("all", "fp8") not in expected
    assert [tuple(row[:2]) for row in shown if row[1:2] and row[1] in gpu_step.WHO] == expected
