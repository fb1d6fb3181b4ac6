"""Bytes that one GPU sends in a step, and over which wire. An estimate: rings, nothing overlapped.

A group of ranks whose numbers lie within one node talks over NVLink, any other over the network.
Megatron numbers ranks by tensor first, then context, expert and data, then pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_bar.costs.memory import WIDTH, rank_parameters
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.layout import Layout


@dataclass(frozen=True)
class Traffic:
    """Bytes by wire."""

    nvlink: float = 0.0
    network: float = 0.0

    def plus(self, size: float, span: int, gpus_per_node: int) -> Traffic:
        """The sum with `size` bytes more, in a group that spans `span` consecutive ranks."""
        if span <= gpus_per_node:
            return Traffic(self.nvlink + size, self.network)
        return Traffic(self.nvlink, self.network + size)


def step_traffic(
    model: ModelConfig,
    layout: Layout,
    training: Training,
    trainable: list[str],
    gpus_per_node: int,
) -> Traffic:
    """Bytes that the busiest GPU sends in one optimizer step.

    Context parallel: keys and values of the other ranks' tokens, and their gradients back. Tensor
    parallel: four gathers or scatters of a layer's hidden states each way. Expert parallel:
    every token's hidden state to and from each rank where all experts are active, else each active
    expert on another rank, each way. Pipeline: hidden states to the next rank and gradients back.
    With tied embeddings the first and the last rank add up fp32 gradients of theirs, too.
    Data parallel: fp32 gradients reduced, and with the distributed optimizer weights gathered.
    """
    width = WIDTH[training.compute_dtype]
    tensor, pipeline, expert = layout.tensor, layout.pipeline, layout.expert
    micro_batches = max(1, training.global_batch_size // (layout.data * training.micro_batch_size))
    row_tokens = training.micro_batch_size * training.row_length * micro_batches
    tokens = row_tokens // layout.context
    layers = model.num_layers // pipeline
    hidden = tokens * model.hidden_size * width
    traffic = Traffic()
    keys_and_values = 2 * row_tokens * model.num_kv_heads * model.head_dim * width / tensor
    traffic = traffic.plus(
        2 * layers * keys_and_values * (layout.context - 1) / layout.context,
        tensor * layout.context,
        gpus_per_node,
    )
    traffic = traffic.plus(8 * layers * hidden * (tensor - 1) / tensor, tensor, gpus_per_node)
    routed = model.experts_per_token != model.num_experts
    targets = model.active_ffns if routed else expert
    traffic = traffic.plus(
        4 * layers * targets * hidden / tensor * (expert - 1) / expert,
        expert * layout.resolved_expert_tensor,
        gpus_per_node,
    )
    if pipeline > 1:
        traffic = traffic.plus(2 * hidden / tensor, layout.processes, gpus_per_node)
        if model.tied_embeddings and "embeddings" in trainable:
            vocabulary = model.padded_vocab_size(tensor) // tensor * model.hidden_size
            traffic = traffic.plus(4 * vocabulary, layout.processes, gpus_per_node)
    for is_expert in (False, True):
        ways = expert * layout.resolved_expert_tensor if is_expert else tensor
        copies = layout.processes // (ways * pipeline)
        size = max(
            sum(
                sizes.get(group, 0)
                for group in trainable
                if group.startswith("expert.") is is_expert
            )
            for sizes in (
                rank_parameters(model, layout, p, e) for p in range(pipeline) for e in range(expert)
            )
        )
        each = 4 + width if training.distributed_optimizer else 8
        traffic = traffic.plus(
            each * size * (copies - 1) / copies, layout.processes // pipeline, gpus_per_node
        )
    return traffic
