"""Attention by document boundaries, against attention with a mask, for all ranks of a row."""

from __future__ import annotations

import inspect

import pytest
import torch

from megatron_bar.models import attention
from megatron_bar.models.attention import FusedAttention
from megatron_bar.models.config import ModelConfig, SlidingWindow
from megatron_bar.models.language_model import transformer_config
from megatron_bar.models.packed import pack_documents
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from tests.varlen import varlen_one_by_one

ROWS, LENGTH, HEADS, KV_HEADS, DIM = 2, 24, 4, 2, 8
# Documents of one token, some that end where a slice does, and padding at a row's end.
DOCUMENTS_BT = torch.tensor([[1] * 11 + [2] + [3] * 6 + [4] * 6, [1] * 3 + [2] * 17 + [0] * 4])
WINDOW = 5


class OneOf:
    """A context-parallel group of several, seen by one of them."""

    def __init__(self, ranks: int, rank: int) -> None:
        self.ranks, self.its_rank = ranks, rank

    def size(self) -> int:
        return self.ranks

    def rank(self) -> int:
        return self.its_rank


def places(ranks: int, rank: int) -> torch.Tensor:
    slices = torch.arange(LENGTH).chunk(2 * ranks)
    return torch.cat((slices[rank], slices[2 * ranks - 1 - rank]))


def flat(x_TBNd: torch.Tensor) -> torch.Tensor:
    """Rows end to end."""
    return x_TBNd.transpose(0, 1).flatten(0, 1)


@pytest.fixture(params=[None, WINDOW], ids=["sees all", "slides"])
def layer(request, monkeypatch):
    model = ModelConfig(64, HEADS * DIM, 32, 1, HEADS, KV_HEADS)
    if request.param:
        model = ModelConfig(
            64, HEADS * DIM, 32, 1, HEADS, KV_HEADS, window=SlidingWindow(request.param, ())
        )
    monkeypatch.setattr(attention, "varlen_attention", varlen_one_by_one)
    with process_groups(Layout()):
        yield FusedAttention(transformer_config(model, Layout(), torch.float32), 1, None, "self")


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_boundaries_compute_what_the_mask_does(ranks, layer, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(LENGTH, ROWS, heads, DIM, generator=generator)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    hidden_BTT = DOCUMENTS_BT[:, :, None] != DOCUMENTS_BT[:, None, :]
    hidden_BTT = hidden_BTT | torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    expected_TBW = layer(q, k, v, hidden_BTT[:, None])
    for rank in range(ranks):
        mine = places(ranks, rank)
        monkeypatch.setattr(layer, "context_group", OneOf(ranks, rank))
        gathered = {
            id_: torch.cat([flat(x[places(ranks, r)]) for r in range(ranks)])
            for id_, x in ((0, k), (1, v))
        }
        asked = iter((0, 1))
        monkeypatch.setattr(
            attention,
            "gather_from_sequence_parallel_region",
            lambda x, group, asked=asked, gathered=gathered: gathered[next(asked)],
        )
        packed = pack_documents(DOCUMENTS_BT, ranks, rank)
        assert len(packed.spans) == (1 if ranks == 1 else 2 * ROWS)
        found_TND = layer(*(flat(x[mine]) for x in (q, k, v)), None, packed_seq_params=packed)
        torch.testing.assert_close(
            found_TND.flatten(1), flat(expected_TBW[mine]), atol=1e-5, rtol=1e-5
        )


def test_the_stand_in_takes_what_torchs_attention_takes():
    from torch.nn.attention.varlen import varlen_attn

    theirs = inspect.signature(varlen_attn).parameters
    for name, parameter in inspect.signature(varlen_one_by_one).parameters.items():
        assert theirs[name].kind == parameter.kind
