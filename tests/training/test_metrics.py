"""What a stage tells: files that a resume cuts back, and the table before the first step."""

from __future__ import annotations

import pytest
import torch

from megatron_bar.training.budget import PADDING, Budget, RankBudget
from megatron_bar.training.metrics import Metrics, read_metrics
from megatron_bar.training.step_metrics import losses_by_source


def test_a_resume_drops_the_steps_that_are_done_again(tmp_path):
    with Metrics(tmp_path) as metrics:
        for step in (1, 2, 3):
            metrics.log(step, loss=float(step), router_load=[[0.25, 0.75]])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill
    with Metrics(tmp_path, first_step=2) as metrics:
        metrics.log(3, loss=9.0)
    assert [m["step"] for m in read_metrics(tmp_path)] == [1, 2, 3]
    assert [m["loss"] for m in read_metrics(tmp_path)] == [1.0, 2.0, 9.0]
    assert read_metrics(tmp_path)[0]["router_load"] == [[0.25, 0.75]]
    assert [path.name for path in tmp_path.glob(".metrics*")] == []


def test_tensorboard_has_a_series_for_each_number(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Metrics(tmp_path) as metrics:
        metrics.log(1, loss=1.0, router_load=[[0.25, 0.75]])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "router_load/0/0", "router_load/0/1"}


def test_losses_by_source():
    sums_D2 = torch.tensor([[6.0, 3.0], [0.0, 0.0], [5.0, 10.0]])
    assert losses_by_source("loss", ("math", "code", "general"), sums_D2) == {
        "loss/math": 2.0,
        "loss/general": 0.5,
    }
    assert losses_by_source("loss", ("data",), sums_D2[:1]) == {}


@pytest.fixture
def shown():
    budget = Budget(
        {"expert.0": 4096, "expert.1": 4096, "router.1": 8},
        ("expert.1", "router.1"),
        (
            RankBudget({"router.1": 32, PADDING: 96}, {"router.1": 64}),
            RankBudget({"expert.1": 16384, "router.1": 32, PADDING: 96}, {"expert.1": 32768}),
        ),
    )
    assert (budget.trainable_count, budget.frozen_count) == (4104, 4096)
    table = budget.table()
    return list(zip(*(column.cells for column in table.columns)))


def test_the_table_has_the_bytes_of_the_fullest_rank(shown):
    assert shown == [
        ("expert.0", "4,096", "frozen", "-", "-"),
        ("expert.1", "4,096", "trains", "16.0 KiB", "32.0 KiB"),
        ("router.1", "8", "trains", "32 B", "64 B"),
        ("padding", "", "", "96 B", "-"),
        ("all", "8,200", "4,104 train, 4,096 frozen", "16.1 KiB", "32.0 KiB"),
    ]
