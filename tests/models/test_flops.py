"""Frozen means free: a step does the products that its trainable parameters need, and no more."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from megatron_bar.models.config import ModelConfig, SlidingWindow
from megatron_bar.models.flops import Work, step_flops
from megatron_bar.models.language_model import build_model
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.route import ROUTE_GROUPS
from megatron_bar.stages.train import MIDTRAIN_GROUPS, SFT_GROUPS
from megatron_bar.training.groups import freeze, group_sizes, matching
from megatron_bar.training.optimizer import wrap
from megatron_bar.training.step import forward_backward
from tests.models_hf import packed_batch

DENSE = ModelConfig(
    vocab_size=331,
    hidden_size=48,
    ffn_hidden_size=80,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    max_position_embeddings=64,
)
QWEN3 = dataclasses.replace(
    DENSE,
    norm_placement="before",
    qk_norm="per_head",
    kv_channels=12,
    tied_embeddings=True,
    family="qwen3",
)
SHARED = ("embeddings", "attention", "block_norms", "final_norm", "head")


def _attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad, query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _addmm(total, a, b, *args, out_shape=None, **kwargs) -> int:
    return 2 * a[0] * a[1] * b[1]


# torch counts neither its CPU attention nor products that are added in place.
UNCOUNTED = {
    torch.ops.aten.addmm_: _addmm,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def _counted(config: ModelConfig, patterns: tuple[str, ...]) -> tuple[int, float]:
    """The operations of a step as torch counts them, and as we do."""
    training = Training(trainable=list(patterns), distributed_optimizer=False)
    trainable = matching(list(group_sizes(config)), patterns, "test")
    batch = packed_batch(config.vocab_size)
    with process_groups(Layout()):
        model = build_model(config, Layout())
        freeze(model, config, trainable)
        wrapped = wrap(model, training)
        with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
            forward_backward(wrapped, [batch])
    sequences, length = batch.tokens_BS.shape
    # Under a mask torch's attention on a CPU computes all of S x S.
    work = Work(sequences * length, sequences * length**2, 0)
    return counter.get_total_flops(), step_flops(config, work, trainable).total


@pytest.mark.parametrize(
    "config, patterns",
    [
        (DENSE, ("*",)),
        (DENSE.with_experts(2), MIDTRAIN_GROUPS),
        (DENSE.with_experts(5), ("expert.4", "router.4")),
        (DENSE.with_experts(2), ("expert.0",)),
        (DENSE.with_experts(2), SFT_GROUPS),
        (DENSE.with_experts(5), ROUTE_GROUPS),
        (DENSE.with_experts(2), SHARED),
        (DENSE.with_experts(2), ("embeddings",)),
        (DENSE.with_experts(2), ("head",)),
        (DENSE.with_experts(2), ("block_norms",)),
        (DENSE.with_experts(5), ("*",)),
        (QWEN3, ("*",)),
        (QWEN3.with_experts(2), MIDTRAIN_GROUPS),
        (QWEN3.with_experts(2), SFT_GROUPS),
    ],
    ids=[
        "dense",
        "midtrain-2",
        "midtrain-5",
        "anchor",
        "sft",
        "route",
        "rlvr",
        "embeddings",
        "head",
        "norms",
        "all",
        "tied",
        "tied-midtrain",
        "tied-sft",
    ],
)
def test_a_step_does_the_necessary_products_and_no_more(config, patterns):
    counted, needed = _counted(config, patterns)
    assert counted == needed


def test_megatrons_first_product_to_train_also_makes_the_gradient_of_its_input():
    counted, needed = _counted(DENSE.with_experts(2), ("attention",))
    in_vain = 2 * 48 * (48 + 2 * 16)
    assert counted == needed + in_vain * packed_batch(DENSE.vocab_size).tokens_BS.numel()


def test_a_mid_training_step_saves_nearly_all_weight_gradients():
    model = ModelConfig(100_352, 4096, 11008, 32, 32, 32).with_experts(2)
    work = Work(4096, 4096**2 // 2, 0)
    step = step_flops(model, work, ("expert.1", "router.1"))
    everything = step_flops(model, work, list(group_sizes(model)))
    assert step.forward == everything.forward
    assert step.weight_gradients / everything.weight_gradients == pytest.approx(0.37, abs=0.02)


def test_experts_that_are_not_active_cost_nothing():
    """Five experts of which two are active are two experts, but for the router."""
    work = Work(7, 0, 0)
    router = 3 * 2 * 7 * DENSE.hidden_size * DENSE.num_layers  # an expert's row
    costs = [
        step_flops(config, work, list(group_sizes(config))).total
        for config in (DENSE.with_experts(5, 2), DENSE.with_experts(2))
    ]
    assert costs[0] - costs[1] == pytest.approx(3 * router)


def test_a_sliding_layer_counts_the_pairs_in_its_window():
    model = dataclasses.replace(DENSE, window=SlidingWindow(4, full_layers=(2,)))
    width = DENSE.num_heads * DENSE.head_dim
    pairs = step_flops(model, Work(0, 10, 3), ["embeddings"])
    assert pairs.total == (10 + 3 + 3) * 2 * width * (2 + 5)


def test_a_step_tells_how_many_keys_its_queries_see():
    """Documents hide each other, and windows what lies before them."""
    config = dataclasses.replace(DENSE, window=SlidingWindow(4, full_layers=(2,)))
    batch = packed_batch(config.vocab_size)
    visible_BSS = ~batch.attention_mask_B1SS[:, 0]
    with process_groups(Layout()):
        wrapped = wrap(build_model(config, Layout()), Training(distributed_optimizer=False))
        work = forward_backward(wrapped, [batch, batch]).work
    assert work == Work(
        2 * batch.tokens_BS.numel(), 2 * int(visible_BSS.sum()), 2 * int(visible_BSS.triu(-3).sum())
    )
