"""Order is a function of seed and step, whatever the number of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_bar.data.batches import Batches, planned_steps
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.errors import BarError


def test_epochs_are_permutations_without_a_gap():
    batches = Batches(rows=10, global_batch_size=4, seed=1)
    stream = np.concatenate([batches.indices(step) for step in range(15)])  # 6 epochs
    for epoch in stream.reshape(6, 10):
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in stream.reshape(6, 10)}) == 6


def test_a_step_needs_no_history():
    forward = Batches(rows=7, global_batch_size=3, seed=5)
    expected = [forward.indices(step).tolist() for step in range(60)]
    for step in (59, 3, 31, 0, 59):
        assert Batches(rows=7, global_batch_size=3, seed=5).indices(step).tolist() == expected[step]
        assert forward.indices(step).tolist() == expected[step]
    assert Batches(rows=7, global_batch_size=3, seed=6).indices(0).tolist() != expected[0]


def test_the_order_is_pinned():
    """A change here would reorder the data of a run that resumes."""
    assert Batches(rows=8, global_batch_size=12, seed=0).indices(0).tolist() == [
        3,
        7,
        4,
        0,
        2,
        6,
        5,
        1,
        0,
        5,
        6,
        1,
    ]


def test_a_batch_larger_than_the_data():
    batches = Batches(rows=3, global_batch_size=8, seed=0)
    assert np.bincount(batches.indices(0)).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_ranks_together_see_the_batch(size):
    batches = Batches(rows=29, global_batch_size=16, seed=3)
    for step in range(5):
        shares = [batches.share(step, rank, size) for rank in range(size)]
        assert np.concatenate(shares).tolist() == batches.indices(step).tolist()
        micro = [batches.micro_batches(step, rank, size, 2) for rank in range(size)]
        assert micro[0].shape == (16 // size // 2, 2)
        assert np.concatenate(micro).ravel().tolist() == batches.indices(step).tolist()


@pytest.mark.parametrize(
    "length, rows, global_batch_size, steps",
    [
        (dict(epochs=1), 10, 4, 3),
        (dict(epochs=2), 10, 4, 5),
        (dict(epochs=0.3), 10, 1, 3),
        (dict(epochs=0.1), 30, 1, 3),
        (dict(epochs=1), 3, 100, 1),
        (dict(steps=7), 3, 100, 7),
        (dict(tokens="50B"), 3, 128, 47_684),  # as the published mid-training has it
        (dict(tokens="1_048_577"), 3, 128, 2),
        (dict(tokens="1.048576M"), 3, 128, 1),
    ],
)
def test_planned_steps(length, rows, global_batch_size, steps):
    training = Training(global_batch_size=global_batch_size, sequence_length=8192, **length)
    assert planned_steps(training, rows) == steps


def test_rows_that_are_in_order_stay_in_order():
    batches = Batches(rows=10, global_batch_size=4, seed=None)
    assert [batches.indices(step).tolist() for step in range(3)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 0, 1],
    ]
    assert batches.share(1, 1, 2).tolist() == [6, 7]


def test_refusals():
    with pytest.raises(BarError, match="no rows"):
        Batches(rows=0, global_batch_size=4, seed=0)
    with pytest.raises(BarError, match="global_batch_size is 0"):
        Batches(rows=3, global_batch_size=0, seed=0)
    batches = Batches(rows=10, global_batch_size=12, seed=0)
    with pytest.raises(BarError, match=r"12 can't be shared by 5 .* multiple of 5"):
        batches.share(0, 0, 5)
    with pytest.raises(BarError, match=r"12 can't be shared by 2 .* of 4; make it a multiple of 8"):
        batches.micro_batches(0, 0, 2, 4)


def test_negative_and_large_seeds():
    for seed in (-1, 2**40 + 1):
        assert sorted(Batches(rows=5, global_batch_size=5, seed=seed).indices(0)) == [0, 1, 2, 3, 4]
