"""Routing of given texts by a model, in any layout: by task, kind of token and speaker.

Shapes: B batch, S sequence, L layers, C classes of tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_bar.data.batch import to_batch
from megatron_bar.data.rows import PackedRows, PackReport
from megatron_bar.evaluation.token_kinds import KINDS, SPEAKERS, LabelledText
from megatron_bar.models.language_model import LanguageModel
from megatron_bar.models.routing_record import RoutingRecord, layer_means, record_routing
from megatron_bar.training.step import forward_backward

_ROWS_AT_ONCE = 8
_EXAMPLES = 2  # texts of a task whose every token is recorded
_LONGEST_EXAMPLE = 400


@torch.no_grad()
def route_texts(model: LanguageModel, texts: Sequence[LabelledText], pad_id: int) -> dict[str, Any]:
    """Route `texts` by the routers of `model`; the same result on every rank. All ranks call this.

    `model` computes without sequence parallelism, in eval mode. Returns `layers` [L][E], the mean
    share of each expert, `entropy` [L] in nats, `tokens`; the same for each of `kinds` and
    `speakers` that occur; and `examples`, the first texts with `shares` [T][L][E].
    """
    limit = model.max_sequence_length
    record = RoutingRecord(*_sizes(model), len(KINDS) * len(SPEAKERS))
    for rows, labels_BS in _batches(texts, limit):
        _forward(model, rows, labels_BS, pad_id, record)
    sums_LCX = _of_all_layers(record.sums_LCX.contiguous())
    # Data-parallel ranks have routed different texts; tensor-parallel ones the same.
    dist.all_reduce(sums_LCX, group=parallel_state.get_data_parallel_group())
    sums_LKSX = sums_LCX.cpu().unflatten(1, (len(KINDS), len(SPEAKERS)))
    return {
        **_means(sums_LKSX.sum((1, 2))),
        "kinds": _by(KINDS, sums_LKSX.sum(2)),
        "speakers": _by(SPEAKERS, sums_LKSX.sum(1)),
        "examples": [_example(model, text, pad_id) for text in texts[:_EXAMPLES]],
    }


def _sizes(model: LanguageModel) -> tuple[int, int]:
    """The model's layers and experts, on all ranks together."""
    return model.config.num_layers, model.config.num_moe_experts


def _by(names: Sequence[str], sums_LCX: torch.Tensor) -> dict[str, Any]:
    return {
        name: _means(sums_LX)
        for name, sums_LX in zip(names, sums_LCX.unbind(1))
        if sums_LX[0, -1] > 0
    }


def _means(sums_LX: torch.Tensor) -> dict[str, Any]:
    shares, entropy = layer_means(sums_LX)
    return {"tokens": int(sums_LX[0, -1]), "layers": shares, "entropy": entropy}


def _batches(texts: Sequence[LabelledText], limit: int):
    """This data-parallel rank's batches: rows, and the class of each of their tokens.

    Texts of like length share a batch. Ranks that share experts step together, so at any time all
    have rows of one length, and as many; those that are too many are empty.
    """
    size = parallel_state.get_data_parallel_world_size()
    rank = parallel_state.get_data_parallel_rank()
    by_length = sorted(texts, key=lambda text: len(text.ids))
    for start in range(0, len(by_length), size * _ROWS_AT_ONCE):
        group = by_length[start : start + size * _ROWS_AT_ONCE]
        yield _rows(group[rank::size], -(-len(group) // size), min(len(group[-1].ids), limit))


def _rows(texts: Sequence[LabelledText], count: int, length: int) -> tuple[PackedRows, np.ndarray]:
    """A row a text, cut to `length`, and the class of each token; -1 where there is none."""
    rows = PackedRows.empty(count, length, ("text",), PackReport())
    labels_BS = np.full((count, length), -1, np.int64)
    for row, text in enumerate(texts):
        used = min(len(text.ids), length)
        rows.tokens_RS[row, :used] = text.ids[:used]
        rows.documents_RS[row, :used] = 1
        rows.sources_RS[row, :used] = 0
        labels_BS[row, :used] = (text.kinds_T.astype(np.int64) * len(SPEAKERS) + text.speakers_T)[
            :used
        ]
    return rows, labels_BS


def _forward(
    model: LanguageModel,
    rows: PackedRows,
    labels_BS: np.ndarray,
    pad_id: int,
    record: RoutingRecord,
) -> None:
    batch = to_batch(rows, pad_id)
    labels = torch.from_numpy(labels_BS).reshape(batch.tokens_BS.shape)
    record.labels = labels.t().reshape(-1).to(batch.tokens_BS.device)
    with record_routing(model, record), model.without_head():
        forward_backward(model, [batch], train=False)


def _example(model: LanguageModel, text: LabelledText, pad_id: int) -> dict[str, Any]:
    """Every data-parallel rank routes the text, so that those that share experts keep step."""
    length = min(len(text.ids), _LONGEST_EXAMPLE, model.max_sequence_length)
    record = _EveryToken(*_sizes(model), length)
    rows, labels_BS = _rows([text], 1, length)
    _forward(model, rows, labels_BS, pad_id, record)
    shares_LTE = _of_all_layers(record.shares_LTE).cpu()
    return {
        "texts": text.texts[:length],
        "kinds": [KINDS[kind] for kind in text.kinds_T[:length]],
        "speakers": [SPEAKERS[speaker] for speaker in text.speakers_T[:length]],
        "shares": (shares_LTE.transpose(0, 1) * 1000).round().div(1000).tolist(),
    }


class _EveryToken(RoutingRecord):
    """Keeps what each token was given."""

    def __init__(self, layers: int, experts: int, tokens: int) -> None:
        super().__init__(layers, experts, len(KINDS) * len(SPEAKERS))
        self.shares_LTE = self.sums_LCX.new_zeros(layers, tokens, experts)

    def add(self, layer: int, probs_TE: torch.Tensor) -> torch.Tensor:
        self.shares_LTE[layer - 1] = super().add(layer, probs_TE)
        return self.shares_LTE[layer - 1]


def _of_all_layers(of_rank_LX: torch.Tensor) -> torch.Tensor:
    """`of_rank_LX`, which is 0 for layers of other pipeline ranks, with these on every rank."""
    dist.all_reduce(of_rank_LX, group=parallel_state.get_pipeline_model_parallel_group())
    return of_rank_LX
