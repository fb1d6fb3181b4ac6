"""Messages of an optimizer step, and their time by the formulas of rings.

Megatron-Core numbers ranks by tensor first, then context, expert and data, then pipeline. A group
whose ranks lie on one node talks over NVLink. One that spans nodes goes as fast as the adapters of
its members on a node together: NCCL gives each its own ring.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from megatron_bar.costs.machine import NETWORK_LATENCY, NVLINK_LATENCY, Machine
from megatron_bar.costs.memory import WIDTH, rank_parameters
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.layout import Layout

# Rounds of n - 1 steps in which each rank sends a n-th of the buffer.
_ROUNDS = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2}
# Megatron-Core reduces gradients in buckets of so many parameters, where that overlaps.
_BUCKET, _BUCKET_PER_RANK = 40_000_000, 1_000_000
# What the training loop turns on by itself on a GPU, of what a recipe's `megatron` may say.
_OVERLAPS = {"overlap_grad_reduce": True, "overlap_param_gather": False}
# What waits for gradients and for weights, once a step; all else is part of a micro-batch.
GRADIENTS, WEIGHTS = "gradients", "weights"


@dataclass(frozen=True)
class Group:
    """Ranks that talk to each other; `stride` lies between the numbers of two neighbours."""

    ranks: int
    stride: int = 1

    def per_node(self, machine: Machine) -> int:
        """The number of them that a node has."""
        return max(1, min(self.ranks, machine.per_node // self.stride))

    def spans_nodes(self, machine: Machine) -> bool:
        return self.per_node(machine) < self.ranks


@dataclass(frozen=True)
class Message:
    """A collective, or a message to a neighbour.

    `size` is that of the buffer that is whole on each rank, after a gather or before a scatter; of
    an all-to-all what a rank has for all.
    """

    purpose: str
    kind: str  # all-gather, reduce-scatter, all-reduce, all-to-all or send
    size: float  # bytes
    group: Group
    times: float = 1  # a step

    @property
    def sent(self) -> float:
        """Bytes that one GPU sends, each time."""
        ranks = self.group.ranks
        if self.kind == "send":
            return self.size
        return _ROUNDS.get(self.kind, 1) * self.size * (ranks - 1) / ranks

    def seconds(self, machine: Machine) -> float:
        """Seconds of all times together."""
        here, ranks = self.group.per_node(machine), self.group.ranks
        outside = 1 / here if self.group.spans_nodes(machine) else 0.0
        hop = outside * NETWORK_LATENCY + (1 - outside) * NVLINK_LATENCY
        if self.kind == "send":
            rate = machine.network_rate if outside else machine.nvlink_rate
            return self.times * (hop + self.size / rate)
        if self.kind == "all-to-all":  # each with each, at the same time
            inside, away = (self.size * count / ranks for count in (here - 1, ranks - here))
            slowest = max(inside / machine.nvlink_rate, away / machine.network_rate)
            return self.times * (hop + slowest)
        rate = machine.nvlink_rate
        if outside:
            rate = min(rate, here * machine.network_rate)
        return self.times * (_ROUNDS[self.kind] * (ranks - 1) * hop + self.sent / rate)


@dataclass(frozen=True)
class Traffic:
    """Bytes that one GPU sends in a step, by wire."""

    nvlink: float = 0.0
    network: float = 0.0


def traffic_of(messages: Iterable[Message], machine: Machine) -> Traffic:
    """All bytes of a group that spans nodes are the network's."""
    bytes_by_wire = {False: 0.0, True: 0.0}
    for message in messages:
        bytes_by_wire[message.group.spans_nodes(machine)] += message.sent * message.times
    return Traffic(bytes_by_wire[False], bytes_by_wire[True])


def micro_batches(layout: Layout, training: Training) -> int:
    """The number that a rank goes through in a step."""
    return max(1, training.global_batch_size // (layout.data * training.micro_batch_size))


def overlaps(training: Training) -> tuple[bool, bool]:
    """Whether gradients are reduced, and weights gathered, while others are computed."""
    reduce, gather = (
        str(training.megatron.get(name, default)).lower() in ("true", "yes", "on", "1")
        for name, default in _OVERLAPS.items()
    )
    return reduce, reduce and gather


def step_messages(
    model: ModelConfig, layout: Layout, training: Training, trainable: Collection[str]
) -> list[Message]:
    """Messages that the busiest GPU has a part in, in a step; groups of one send none."""
    return [
        message
        for message in (
            *_of_attention(model, layout, training, trainable),
            *_of_ffns(model, layout, training, trainable),
            *_of_pipeline(model, layout, training, trainable),
            *_of_data(model, layout, training, trainable),
        )
        if message.group.ranks > 1 and message.size and message.times
    ]


def _layers(model: ModelConfig, layout: Layout, training: Training) -> int:
    """Times that a rank goes through a layer in a step."""
    return micro_batches(layout, training) * model.num_layers // layout.pipeline


def _hidden(model: ModelConfig, layout: Layout, training: Training) -> float:
    """Bytes of a micro-batch's hidden states, those that tensor-parallel ranks share."""
    tokens = training.micro_batch_size * training.row_length // layout.context
    return tokens * model.hidden_size * WIDTH[training.compute_dtype]


def _of_attention(
    model: ModelConfig, layout: Layout, training: Training, trainable: Collection[str]
) -> Iterator[Message]:
    """Sequence-parallel hidden states, and keys and values of a row's other parts.

    Hidden states are gathered before a layer's products and scattered after them, and their
    gradients the other way round; once more for the gradients of weights, if these train.
    The embedding scatters and the head gathers, and their gradients go the other way.
    """
    forward = 2 if training.recompute == "full" else 1
    layers, hidden = _layers(model, layout, training), _hidden(model, layout, training)
    tensor, counts = Group(layout.tensor), micro_batches(layout, training)
    gathers = forward + 1 + ("attention" in trainable)
    yield Message("tensor", "all-gather", hidden, tensor, layers * gathers)
    yield Message("tensor", "reduce-scatter", hidden, tensor, layers * (forward + 1))
    ends = counts * (1 + ("embeddings" in trainable))
    yield Message("tensor", "all-gather", hidden, tensor, ends)
    yield Message("tensor", "reduce-scatter", hidden, tensor, 2 * counts)
    whole_rows = training.micro_batch_size * training.row_length
    width = model.num_kv_heads * model.head_dim // layout.tensor
    keys = whole_rows * width * WIDTH[training.compute_dtype]
    context = Group(layout.context, layout.tensor)
    yield Message("context", "all-gather", keys, context, 2 * forward * layers)
    yield Message("context", "reduce-scatter", keys, context, 2 * layers)


def _of_ffns(
    model: ModelConfig, layout: Layout, training: Training, trainable: Collection[str]
) -> Iterator[Message]:
    """Of a dense FFN as of attention. Where all experts are active, every token goes to each rank
    that has experts, or parts of them, and their sum comes back. Else each token goes to its
    experts' ranks and back.
    """
    layers, hidden = _layers(model, layout, training), _hidden(model, layout, training)
    if model.num_experts is None:
        forward, again = 1 + (training.recompute == "full"), "ffn" in trainable
        yield Message(
            "tensor", "all-gather", hidden, Group(layout.tensor), layers * (forward + 1 + again)
        )
        yield Message(
            "tensor", "reduce-scatter", hidden, Group(layout.tensor), layers * (forward + 1)
        )
        return
    times = layers * (2 + (training.recompute != "none"))
    mine, parts = hidden / layout.tensor, layout.resolved_expert_tensor
    if model.all_experts_active:
        sharing = Group(layout.expert * parts)
        for kind in ("all-gather", "reduce-scatter"):
            yield Message("experts", kind, mine * sharing.ranks, sharing, times)
        return
    routed = model.active_ffns * mine
    yield Message("experts", "all-to-all", routed, Group(layout.expert, parts), 2 * times)
    for kind in ("all-gather", "reduce-scatter"):
        yield Message("experts", kind, routed * parts, Group(parts), times)


def _of_pipeline(
    model: ModelConfig, layout: Layout, training: Training, trainable: Collection[str]
) -> Iterator[Message]:
    """Hidden states to the next rank, gradients back. Tied embeddings' gradients are added up."""
    stages = Group(layout.pipeline, layout.processes // layout.pipeline)
    mine = _hidden(model, layout, training) / layout.tensor
    yield Message("pipeline", "send", mine, stages, 2 * micro_batches(layout, training))
    if model.tied_embeddings and "embeddings" in trainable and layout.pipeline > 1:
        vocabulary = model.padded_vocab_size(layout.tensor) // layout.tensor * model.hidden_size
        yield Message(GRADIENTS, "all-reduce", 4 * vocabulary, Group(2, stages.stride))


def _of_data(
    model: ModelConfig, layout: Layout, training: Training, trainable: Collection[str]
) -> Iterator[Message]:
    """Gradients in fp32; with the distributed optimizer each rank gets a share, and all weights."""
    for is_expert in (False, True):
        ways = layout.expert * layout.resolved_expert_tensor if is_expert else layout.tensor
        group = Group(layout.processes // (ways * layout.pipeline), ways)
        size = max(
            sum(sizes.get(name, 0) for name in trainable if name.startswith("expert.") is is_expert)
            for sizes in (
                rank_parameters(model, layout, pipeline, expert)
                for pipeline in {0, layout.pipeline - 1}  # those between have less
                for expert in range(layout.expert)
            )
        )
        parts = max(1, math.ceil(size / _bucket(training, group)))
        each = size / parts
        if not training.distributed_optimizer:
            yield Message(GRADIENTS, "all-reduce", 4 * each, group, parts)
            continue
        yield Message(GRADIENTS, "reduce-scatter", 4 * each, group, parts)
        yield Message(WEIGHTS, "all-gather", WIDTH[training.compute_dtype] * each, group, parts)


def _bucket(training: Training, group: Group) -> float:
    """Parameters whose gradients are reduced together; all of them where nothing overlaps."""
    if not overlaps(training)[0]:
        return math.inf
    size = training.megatron.get("bucket_size")
    return size or max(_BUCKET, _BUCKET_PER_RANK * group.ranks)
