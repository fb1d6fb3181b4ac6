"""Who waits for whom in a step."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from megatron_bar.runtime import cpu
from megatron_bar.training import waiting
from megatron_bar.training.waiting import Waiting


@pytest.fixture
def four_ranks(monkeypatch) -> list[float]:
    """This is rank 0 of four; the others' own times are what the list holds."""
    cpu.install()
    others = [0.0, 0.0, 0.0]
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 4)

    def gather_names(found: list[str], mine: str, group: None) -> None:
        found[:] = ["n1", "n1", "n2", "n2"]

    def gather(found: list[torch.Tensor], mine: torch.Tensor) -> None:
        for everyones, time in zip(found, [mine.item(), *others]):
            everyones.fill_(time)

    monkeypatch.setattr(dist, "all_gather_object", gather_names)
    monkeypatch.setattr(dist, "all_gather", gather)
    return others


def _watched() -> tuple[Waiting, torch.nn.Module, SimpleNamespace]:
    """A model whose every pass takes a second more by a clock that counts."""
    model = torch.nn.Linear(2, 2)
    config = SimpleNamespace(finalize_model_grads_func=lambda models: models)
    return Waiting(model, config, itertools.count(0.0, 0.5).__next__), model, config


def _step(model: torch.nn.Module, config: SimpleNamespace) -> None:
    for _ in range(2):  # micro-batches: only the first opens the step
        model(torch.ones(2))
    assert config.finalize_model_grads_func([model]) == [model]


def test_ranks_wait_for_the_slowest(four_ranks):
    watch, model, config = _watched()
    _step(model, config)
    model.eval()
    model(torch.ones(2))  # of a validation: no step begins
    model.train()
    _step(model, config)
    four_ranks[:] = [1.0, 2.0, 1.0]  # and rank 0 has computed for two half seconds
    assert watch.metrics("math/sft") == {
        "ranks_waiting_share": pytest.approx(1 - 1.25 / 2.0),
        "slowest_rank": 2,
    }
    assert watch.metrics("math/sft") == {}  # it begins anew
    _step(model, config)
    four_ranks[:] = [0.0, 0.0, 0.0]
    assert watch.metrics("math/sft") == {"ranks_waiting_share": 0.75, "slowest_rank": 0}


def test_a_rank_that_is_slow_again_and_again_is_named_once(four_ranks, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(waiting, "warn", said.append)
    watch, model, config = _watched()
    for slow in (2, 2, 3, 2, 2, 2, 2):
        four_ranks[:] = [0.5, 0.5, 0.5]
        four_ranks[slow - 1] = 0.7
        _step(model, config)
        watch.metrics("math/sft")
    assert said == [
        "math/sft: rank 2 on n2 is slow: it computes 1.40 times as long as the median rank, and "
        "the others wait for it"
    ]
    four_ranks[:] = [0.55, 0.5, 0.5]  # as ranks differ
    for _ in range(3):
        _step(model, config)
        watch.metrics("math/sft")
    assert len(said) == 1
    four_ranks[:] = [0.9, 0.5, 0.5]  # and as they differ whose answers are longer
    for _ in range(3):
        _step(model, config)
        assert watch.metrics()["slowest_rank"] == 1
    assert len(said) == 1
