"""Bytes on one GPU by kind.

Weights, gradients and optimizer state are counted as the training loop allocates them, without the
padding of Megatron's buffers (some kilobytes). Activations and buffers are estimates.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_bar.models.config import ModelConfig
from megatron_bar.models.loss_chunks import KEPT_BYTES, chunk_tokens
from megatron_bar.recipe.schema import Evaluate
from megatron_bar.recipe.training import Rlvr, Training
from megatron_bar.rlvr.settings import reference_share
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.disk_space import point_bytes

WIDTH = {"float32": 4, "bfloat16": 2}
# CUDA's context, NCCL's channels, cuBLAS's workspace and the allocator's holes; a guess.
BUFFER_BYTES = 5 << 30
# Of an item that a model is asked; what real ones have isn't known before they are read.
PROMPT_TOKENS = 2048


@dataclass(frozen=True)
class Memory:
    """Bytes on the GPU that needs most; `host` is what its process holds in the node's memory."""

    weights: int
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    buffers: int = BUFFER_BYTES
    cache: int = 0  # keys and values of what is being generated
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes of the GPU. It doesn't generate and train at once."""
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + max(self.activations, self.cache)
            + self.buffers
        )


def rank_parameters(
    model: ModelConfig, layout: Layout, pipeline_rank: int = 0, expert_rank: int = 0
) -> dict[str, int]:
    """Parameters that one rank holds, by group."""
    hidden, tensor = model.hidden_size, layout.tensor
    heads, kv_heads = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    layers = model.num_layers // layout.pipeline
    norms = 2 * model.head_dim if model.qk_norm == "per_head" else (heads + kv_heads) // tensor
    sizes = {
        "attention": layers * (2 * (heads + kv_heads) * hidden // tensor + norms),
        "block_norms": layers * 2 * hidden,
    }
    vocabulary = model.padded_vocab_size(tensor) // tensor * hidden
    if pipeline_rank == 0:
        sizes["embeddings"] = vocabulary
    if pipeline_rank == layout.pipeline - 1:
        # Tied embeddings, of which the last rank has a copy, unless it is the first one, too.
        head = "embeddings" if model.tied_embeddings else "head"
        sizes |= {"final_norm": hidden, head: vocabulary}
    ffn = layers * 3 * hidden * model.ffn_hidden_size
    if model.num_experts is None:
        return sizes | {"ffn": ffn // tensor}
    here = model.num_experts // layout.expert
    for expert in range(expert_rank * here, (expert_rank + 1) * here):
        sizes[f"expert.{expert}"] = ffn // layout.resolved_expert_tensor
    return sizes | {f"router.{e}": layers * hidden for e in range(model.num_experts)}


def rank_memory(
    model: ModelConfig,
    layout: Layout,
    training: Training,
    trainable: Sequence[str],
    pipeline_rank: int,
    expert_rank: int,
) -> Memory:
    """Bytes on one rank of a stage that trains the groups in `trainable`.

    Weights are the model's and, with `fp8_frozen_experts`, two copies of frozen experts, of a byte
    a number. Gradients are fp32. AdamW has two fp32 moments and, for bf16 weights, a fp32 copy; the
    distributed optimizer spreads these over the ranks that hold the same parameters.
    """
    sizes = rank_parameters(model, layout, pipeline_rank, expert_rank)
    width = WIDTH[training.compute_dtype]
    gradients = optimizer = 0.0
    for group in trainable:
        size = sizes.get(group, 0)
        gradients += 4 * size
        copies = _copies(layout, group) if training.distributed_optimizer else 1
        optimizer += size * (8 if training.dtype == "float32" else 12) / copies
    fp8 = 0
    if training.fp8_frozen_experts:
        frozen = [g for g in sizes if g.startswith("expert.") and g not in trainable]
        fp8 = sum(2 * sizes[group] for group in frozen) + len(frozen) * _fp8_scales(model, layout)
    activations = _activations(model, layout, training, trainable, pipeline_rank)
    cache = host = 0
    if isinstance(training, Rlvr):
        if not training.rollout_nodes:  # which have it on GPUs of their own
            tokens = training.rollout_batch_size * training.row_length
            cache = cache_bytes(model, layout, tokens, training.compute_dtype)
        if reference_share(training):
            # The start's values; while these stand in the parameters, their own are set aside.
            host = 2 * width * sum(sizes.get(group, 0) for group in trainable)
    return Memory(
        weights=width * sum(sizes.values()) + fp8,
        gradients=round(gradients),
        optimizer=round(optimizer),
        activations=activations,
        cache=cache,
        host=host,
    )


def _fp8_scales(model: ModelConfig, layout: Layout) -> int:
    """Bytes of the fp32 scales of an expert's two weights, one for each row and each column."""
    ffn = model.ffn_hidden_size // layout.resolved_expert_tensor
    return 4 * model.num_layers // layout.pipeline * (3 * ffn + 2 * model.hidden_size)


def cache_bytes(model: ModelConfig, layout: Layout, tokens: int, dtype: str) -> int:
    """Keys and values of so many tokens on one rank."""
    layers = model.num_layers // layout.pipeline
    kv_width = 2 * model.num_kv_heads * model.head_dim // layout.tensor
    return tokens * layers * kv_width * WIDTH[dtype]


def _copies(layout: Layout, group: str) -> int:
    """How many ranks hold the same part of a group's parameters."""
    if group.startswith("expert."):
        ways = layout.expert * layout.resolved_expert_tensor * layout.pipeline
        return layout.processes // ways
    return layout.data * layout.context


def training_memory(
    model: ModelConfig, layout: Layout, training: Training, trainable: Sequence[str]
) -> Memory:
    """Bytes of the rank that needs most."""
    return max(
        (
            rank_memory(model, layout, training, trainable, *rank)
            for rank in itertools.product(range(layout.pipeline), range(layout.expert))
        ),
        key=lambda memory: memory.total,
    )


def saved_bytes(training: Training, parameters: int) -> int:
    """Bytes on disk of a state to go on from: what trains, and what the optimizer knows of it."""
    return parameters * point_bytes(WIDTH[training.compute_dtype])


def evaluation_memory(model: ModelConfig, layout: Layout, settings: Evaluate) -> Memory:
    """Bytes of the rank that needs most; activations, a token's at a time, are neglected."""
    weights = max(
        sum(rank_parameters(model, layout, *rank).values())
        for rank in itertools.product(range(layout.pipeline), range(layout.expert))
    )
    tokens = settings.batch_size * answer_length(model, settings)
    return Memory(
        WIDTH[settings.compute_dtype] * weights,
        cache=cache_bytes(model, layout, tokens, settings.compute_dtype),
    )


def answer_length(model: ModelConfig, settings: Evaluate) -> int:
    """Tokens of an item and its answer, at most."""
    return min(PROMPT_TOKENS + settings.max_new_tokens, model.max_position_embeddings)


def _activations(
    model: ModelConfig,
    layout: Layout,
    training: Training,
    trainable: Sequence[str],
    pipeline_rank: int,
) -> int:
    """An estimate: what each layer keeps for its backward pass, in the compute dtype.

    Elements a token, as autograd keeps them where all parameters train (frozen ones and fused
    layers keep less): 4 H between the sub-layers; Q + 2 KV of the projection, and Q + KV each
    before the norms and after the rotation; Q for the attention's output; the FFN's. With experts
    in bf16 the router's input stands there in fp32 too. Tensor parallelism, with sequence
    parallelism, divides all of it. The first pipeline rank holds as many micro batches as there are
    ranks. Under context parallelism a rank has its share of the tokens, but the keys and values
    of all. Not counted are masks, which fused attention on a GPU doesn't keep.
    """
    width = WIDTH[training.compute_dtype]
    hidden = model.hidden_size
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    ffn = _ffn_elements(model, layout, trainable)
    if model.num_experts is not None and width < 4:
        ffn += 4 * hidden // width
    attention = 4 * (hidden + queries + keys)
    if layout.context > 1:
        attention += 2 * keys * layout.context
    kept = {"none": attention + ffn, "moe": attention, "full": hidden}[training.recompute]
    once = (
        attention + ffn
        if training.recompute == "full"
        else (ffn if training.recompute == "moe" else 0)
    )
    share = training.global_batch_size // (layout.data * training.micro_batch_size)
    in_flight = min(layout.pipeline - pipeline_rank, max(share, 1))
    layers = model.num_layers // layout.pipeline
    tokens = training.micro_batch_size * training.row_length // layout.context
    elements = tokens * (kept * layers * in_flight + once) / layout.tensor
    return round(elements * width) + _logits(model, layout, training, trainable, pipeline_rank)


def _ffn_elements(model: ModelConfig, layout: Layout, trainable: Sequence[str]) -> float:
    """What a layer's FFN keeps a token beside its input, before it is divided by `tensor`.

    With all experts active each keeps its gate and up projections and its output alone, this for
    the tokens of all ranks that share its width. Where one trains, the input gathered from the
    ranks that share experts is kept too. Megatron's own path keeps for each active expert its
    input, both projections and four products; a dense FFN both projections and three products.
    """
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    if model.num_experts is None:
        return 5 * ffn
    if not model.all_experts_active:
        return model.active_ffns * (6 * ffn + hidden)
    sharing = layout.expert * layout.resolved_expert_tensor
    trains = any(group.startswith("expert.") for group in trainable)
    experts = model.num_experts * (2 * ffn + hidden * layout.resolved_expert_tensor)
    return experts + hidden * sharing * (trains and sharing > 1)


def _logits(
    model: ModelConfig,
    layout: Layout,
    training: Training,
    trainable: Sequence[str],
    pipeline_rank: int,
) -> int:
    """On the last pipeline rank, what models/loss.py holds: a chunk's logits, as they are and twice
    in fp32, and what is kept for the backward pass. That is the gradient of the hidden states or,
    where the head trains, all logits, up to a limit; beyond it the head's gradient is added up in
    fp32. An fp32 head for RLVR is a copy of its weights.
    """
    if pipeline_rank < layout.pipeline - 1:
        return 0
    tokens = training.micro_batch_size * training.row_length // layout.context
    columns = model.padded_vocab_size(layout.tensor) // layout.tensor
    in_fp32 = isinstance(training, Rlvr) and training.fp32_lm_head
    width = 4 if in_fp32 else WIDTH[training.compute_dtype]
    chunk = min(tokens, chunk_tokens(columns, on_gpu=True))
    held = chunk * columns * (width + 8) + 4 * columns * model.hidden_size * in_fp32
    if ("embeddings" if model.tied_embeddings else "head") not in trainable:
        return held + tokens * model.hidden_size * width
    whole = tokens * columns * width
    return held + (whole if whole <= KEPT_BYTES else 4 * columns * model.hidden_size)
