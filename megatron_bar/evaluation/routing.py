"""What the routers of a model do with given texts, in any layout.

Shapes: B batch, S sequence, L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_bar.analysis.routing import record_routing
from megatron_bar.data.batch import to_batch
from megatron_bar.data.packing import Example, pack_examples
from megatron_bar.models.olmo import OlmoModel
from megatron_bar.training.step import forward_backward

_ROW_TOKENS = 2048
_ROWS_AT_ONCE = 2


@torch.no_grad()
def mean_routing(
    model: OlmoModel, documents: Sequence[Sequence[int]], pad_id: int
) -> list[list[float]]:
    """Mean probability of each expert, `[L][E]`, over the tokens of `documents`.

    What of a document doesn't fit into a row of 2,048 tokens is left out. `model` is in eval mode
    and without sequence parallelism. All ranks call this with the same documents and get all
    layers; data-parallel ranks each read all documents.
    """
    examples = [Example(ids, [True] * len(ids)) for ids in documents]
    rows = pack_examples(examples, min(_ROW_TOKENS, model.max_sequence_length))
    with record_routing(model) as recorded:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            chosen = rows.take(range(start, min(start + _ROWS_AT_ONCE, len(rows))))
            batch = to_batch(chosen, pad_id)
            inside_BS = torch.from_numpy(chosen.documents_RS > 0).reshape(batch.tokens_BS.shape)
            recorded.tokens_mask = inside_BS.T.reshape(-1)
            forward_backward(model, [batch], len(chosen.source_names), train=False)
    stages: list[list[list[float]]] = [[]] * parallel_state.get_pipeline_model_parallel_world_size()
    group = parallel_state.get_pipeline_model_parallel_group()
    dist.all_gather_object(stages, recorded.mean_LE(), group=group)
    return [layer_E for layers_LE in stages for layer_E in layers_LE]
