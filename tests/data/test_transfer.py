"""Batches on their way to a GPU, as far as a CPU can tell."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch

from megatron_bar.data.transfer import MadeAhead, copied_at_once
from tests.models_hf import packed_batch


@pytest.mark.parametrize("packed", [False, True])
def test_all_tensors_of_a_batch_come_over_in_one_copy(packed):
    batch = dataclasses.replace(packed_batch(331), reference_R=torch.tensor([0.5, 1.5, 2.5]))
    if packed:
        batch = batch.in_one_sequence()
    tensors, buffer = copied_at_once(batch.tensors(), torch.device("cpu"))
    moved = batch.with_tensors(tensors)
    assert len(batch.tensors()) == (9 if packed else 7)
    for name, tensor in batch.tensors().items():
        found = moved.tensors()[name]
        assert torch.equal(found, tensor) and found.dtype is tensor.dtype
        assert found.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
    if packed:
        assert moved.packed.cu_seqlens_q is moved.packed.spans[0].query_bounds_D
        assert moved.packed.spans[0].queries == batch.packed.spans[0].queries


@pytest.fixture(params=[False, True], ids=["CPU", "GPU"])
def on_gpu(request, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: request.param)
    return request.param


def test_the_next_is_made_while_one_is_in_use(on_gpu):
    makers = {}

    def make(number: int) -> int:
        makers[number] = threading.current_thread()
        return 10 * number

    ahead = MadeAhead(make, last=4)
    assert [ahead.take(number) for number in (1, 2, 4)] == [10, 20, 40]  # 3 is not asked for
    ahead.close()
    here = threading.current_thread()
    assert makers[1] is makers[4] is here and (makers[2] is here) == (not on_gpu)


def test_what_fails_fails_where_it_is_asked_for(on_gpu):
    def make(number: int) -> int:
        if number == 2:
            raise ValueError("row 2")
        return number

    ahead = MadeAhead(make, last=3)
    assert ahead.take(1) == 1
    with pytest.raises(ValueError, match="row 2"):
        ahead.take(2)
    ahead.close()
