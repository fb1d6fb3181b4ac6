"""Messages against what Megatron-Core sends, their times against numbers worked by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from megatron_bar.costs.communication import Group, Message, step_messages, traffic_of
from megatron_bar.costs.machine import NETWORK_LATENCY, NVLINK_LATENCY, Machine
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.presets import PRESETS
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.groups import group_sizes
from tests.costs.messages import bytes_sent

# 100 GB/s within a node of 4, 10 GB/s a GPU between nodes.
WIRES = Machine(nvlink=100, network=10, per_node=4)
DENSE = ModelConfig(512, 64, 96, 6, 4, 2)
PAIR = DENSE.with_experts(2)
EXPERT = ["expert.1", "router.1"]


def seconds(kind: str, ranks: int, stride: int = 1, times: int = 1) -> float:
    """Of a gigabyte."""
    return Message("", kind, 1e9, Group(ranks, stride), times).seconds(WIRES)


def test_rings_within_a_node():
    """Each of 4 ranks sends 3/4 of a gigabyte at 100 GB/s, twice in an all-reduce."""
    assert seconds("all-gather", 4) == pytest.approx(7.5e-3 + 3 * NVLINK_LATENCY)
    assert seconds("reduce-scatter", 4, times=3) == pytest.approx(3 * (7.5e-3 + 3 * NVLINK_LATENCY))
    assert seconds("all-reduce", 4) == pytest.approx(15e-3 + 6 * NVLINK_LATENCY)
    assert seconds("send", 2) == pytest.approx(10e-3 + NVLINK_LATENCY)


def test_rings_between_nodes_share_the_adapters_of_their_members():
    """Of 8 ranks 4 are on a node: 7/8 of a gigabyte at 40 GB/s. With a stride of 2 it is 20, of 4
    or more 10. One of four steps of a ring leaves the node.
    """
    hop = 0.25 * NETWORK_LATENCY + 0.75 * NVLINK_LATENCY
    assert seconds("all-gather", 8) == pytest.approx(0.875 / 40 + 7 * hop)
    assert seconds("all-gather", 4, 2) == pytest.approx(0.75 / 20, rel=1e-2)
    assert seconds("all-gather", 2, 4) == pytest.approx(0.5 / 10, rel=1e-2)
    assert seconds("send", 2, 4) == pytest.approx(0.1, rel=1e-2)
    # 4 of 8 eighths leave the node, at the same time as 3 stay in it
    assert seconds("all-to-all", 8) == pytest.approx(0.5 / 10, rel=1e-2)
    assert seconds("all-to-all", 4) == pytest.approx(0.75 / 100, rel=1e-2)


@pytest.mark.parametrize(
    "model, layout, recompute, groups",
    [
        (DENSE, Layout(4, tensor=2), "none", None),
        (DENSE, Layout(4, tensor=2), "full", None),
        (PAIR, Layout(4, tensor=2), "none", None),
        (PAIR, Layout(4, tensor=2), "none", EXPERT),
        (PAIR, Layout(4, tensor=2), "full", EXPERT),
        (PAIR, Layout(4, tensor=2), "moe", EXPERT),
        (PAIR, Layout(4, expert=2), "none", EXPERT),
        (PAIR, Layout(4, expert=2), "none", None),
        (PAIR, Layout(4, context=2), "none", EXPERT),
    ],
)
def test_messages_are_as_large_as_those_of_megatron(model, layout, recompute, groups):
    """Within 2 %: probabilities and sums for norms are left out. Where all before it is frozen the
    first layer's attention has no backward pass, and so up to four messages less.
    """
    training = Training(
        dtype="float32",
        sequence_length=64,
        global_batch_size=2 * layout.data,
        recompute=recompute,
        megatron={"overlap_grad_reduce": False},
    )
    trainable = groups or list(group_sizes(model))
    sent = bytes_sent(model, layout, training, trainable)
    reckoned: Counter[str] = Counter()
    for message in step_messages(model, layout, training, trainable):
        reckoned[message.kind] += message.size * message.times
    first_layer = 4 * 64 * model.hidden_size * 4 if groups else 0
    for kind in ("all-gather", "reduce-scatter"):
        assert 0.98 * sent[kind] <= reckoned[kind] <= 1.02 * sent[kind] + first_layer
    assert sent["all-reduce"] < 0.02 * sent["all-gather"]


def test_traffic_goes_where_the_ranks_are():
    model = PRESETS["olmo2-7b"].with_experts(2)
    training = Training(dtype="bfloat16", global_batch_size=128, sequence_length=8192)

    def traffic(layout: Layout):
        return traffic_of(step_messages(model, layout, training, ["expert.1"]), Machine())

    assert step_messages(model, Layout(), training, ["expert.1"]) == []
    assert traffic(Layout(8, tensor=2, expert=2)).network == 0 < traffic(Layout(8, tensor=2)).nvlink
    # fp32 gradients and bf16 weights of half an expert, over 16 copies of it
    ffn = 3 * 4096 * 11008 * 32
    assert traffic(Layout(64, tensor=2, expert=2)).network == pytest.approx(6 * ffn / 2 * 15 / 16)
