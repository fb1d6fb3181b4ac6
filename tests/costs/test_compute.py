"""The time of a step: from measured rows, by hand, and against published figures."""

from __future__ import annotations

import dataclasses
import math

import pytest

from megatron_bar.costs.compute import stage_efficiency, stage_seconds, step_time
from megatron_bar.costs.efficiency import EXPERT_GROUPS, PRODUCTS, TABLE
from megatron_bar.costs.layouts import ranked_choices, recommended
from megatron_bar.costs.machine import FileSystem, Machine, Measured
from megatron_bar.costs.memory import training_memory
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.flops import Work, step_flops
from megatron_bar.models.presets import PRESETS
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.groups import group_sizes

MEASURED = ModelConfig(100_352, 4096, 11_008, 4, 32, 32).with_experts(2)
H200 = Machine("H200")
ONE = Training(dtype="bfloat16", global_batch_size=2, micro_batch_size=2, sequence_length=4096)


ALONE = Layout()


def reached(machine=H200, groups=EXPERT_GROUPS, model=MEASURED, layout=ALONE, **keys):
    training = dataclasses.replace(ONE, **keys)
    return stage_efficiency(model, layout, training, list(groups), machine)


@pytest.mark.parametrize(
    "keys, mfu",
    [
        ({}, 0.51),
        ({"groups": tuple(group_sizes(MEASURED))}, 0.475),
        ({"recompute": "full"}, 0.35),
        ({"machine": Machine("H200", transformer_engine=False)}, 0.30),
    ],
)
def test_what_was_measured_is_what_is_told(keys, mfu):
    found = reached(**keys)
    assert found.mfu == pytest.approx(mfu * PRODUCTS, rel=5e-3) and found.basis == "measured"


def test_between_rows_lies_a_straight_line():
    fourth = reached(
        micro_batch_size=1, sequence_length=2048
    )  # a fourth of the tokens: as hidden 2048
    assert fourth.mfu == pytest.approx(0.285, rel=1e-3)
    half = reached(micro_batch_size=1)
    assert half.mfu == pytest.approx((0.285 + 0.51 * PRODUCTS) / 2, rel=1e-3)
    assert half.basis == "guessed for 0.5 x the size"
    assert reached(micro_batch_size=1, sequence_length=64).mfu == pytest.approx(0.285, rel=1e-2)
    moe = reached(recompute="moe")
    assert reached(recompute="full").mfu < moe.mfu < reached().mfu
    assert "recompute moe" in moe.basis
    # Half of its weights lie on each of two GPUs.
    assert reached(layout=Layout(2, tensor=2)).mfu == pytest.approx(half.mfu)


def test_another_gpu_has_the_same_products_and_its_own_memory():
    """An operation takes 1 / 0.812 as a product, and what is left goes with 4.8 / 3.35 TB/s."""
    seconds = 1 / (0.51 * PRODUCTS)
    slower = 1 / PRODUCTS + (seconds - 1 / PRODUCTS) * 4.8 / 3.35
    found = reached(Machine("H100"))
    assert found.mfu == pytest.approx(1 / slower) and "H100 (from H200)" in found.basis


def test_a_sites_own_measurement_corrects_the_table():
    machine = Machine("H100", measured=[Measured(0.40)])
    found = reached(machine)
    assert found.mfu == pytest.approx(0.40) and found.basis == "measured"
    factor = 0.40 / reached(Machine("H100")).mfu
    there = reached(machine, recompute="full").mfu / reached(Machine("H100"), recompute="full").mfu
    assert there == pytest.approx(factor)


def test_a_given_mfu_stands_for_all_of_it():
    model, layout, groups = PRESETS["olmo2-7b"].with_experts(2), Layout(64), list(EXPERT_GROUPS)
    training = dataclasses.replace(ONE, global_batch_size=128, expected_mfu=0.4)
    pairs = 128 * 4096 * 2048
    flops = step_flops(model, Work(128 * 4096, pairs, pairs), groups).total
    for found in (
        stage_seconds(model, layout, training, groups, 10, Machine(mfu=0.1)),
        stage_seconds(
            model,
            layout,
            dataclasses.replace(training, expected_mfu=None),
            groups,
            10,
            Machine(mfu=0.4),
        ),
    ):
        assert found == pytest.approx(10 * flops / (64 * 989e12 * 0.4))


def test_the_gpus_whose_expert_trains_have_most_to_do():
    """Two gather all tokens and have an expert each: one has gradients of weights too."""
    model, groups = PRESETS["olmo2-7b"].with_experts(2), list(EXPERT_GROUPS)
    training = dataclasses.replace(ONE, global_batch_size=64)
    shared, apart = (
        step_time(model, Layout(16, expert=expert), training, groups, Machine()).compute
        for expert in (1, 2)
    )
    pairs = 64 * 4096 * 2048
    flops = step_flops(model, Work(64 * 4096, pairs, pairs), groups)
    ffn = 6 * 4096 * 11008 * 32 * 64 * 4096
    assert flops.weight_gradients == pytest.approx(ffn, rel=1e-4)  # of the open expert, and a row
    assert apart / shared == pytest.approx((flops.total + ffn) / flops.total, rel=1e-3)


def test_a_pipeline_waits_for_its_ends_and_overlap_hides_what_it_can():
    model, groups = PRESETS["olmo2-7b"].with_experts(2), list(EXPERT_GROUPS)
    training = dataclasses.replace(ONE, global_batch_size=64)  # 4 micro-batches on 8 ranks
    piped = step_time(model, Layout(16, pipeline=2), training, groups, Machine())
    assert piped.bubble == pytest.approx((piped.compute + piped.within) / 4)
    plain = step_time(model, Layout(64), training, groups, Machine(network=1.0))
    # 4.33 B gradients in 68 buckets, over 8 GB/s a node: far more than one backward pass
    assert plain.reduce == pytest.approx(4 * 4.33e9 * 63 / 64 / 8e9, rel=0.02)
    assert 0 < plain.reduce_hidden < plain.compute < plain.reduce
    fast = step_time(model, Layout(64), training, groups, Machine())
    assert fast.reduce_hidden == pytest.approx(fast.reduce, rel=0.02)
    assert fast.total == pytest.approx(fast.compute + fast.waiting(True, False))
    assert fast.exposed(True, True) < fast.exposed(True, False) < fast.exposed(False, False)


@pytest.mark.parametrize(
    "model, processes, micro_batch, low, high",
    [
        # OLMo-2 7B's SFT in OLMo-core, 16 H100: within what is published
        ("olmo2-7b", 16, 1, 5700, 7400),
        ("olmo2-7b", 16, 2, 5700, 7400),
        # OLMo-core 1.2's pretraining on H100s is faster than what was measured here: by 1.4 at 7B
        # and by 1.2 at 13B (docs/results/plan.md)
        ("olmo2-7b", 64, 2, 9700 / 1.45, 9700 / 1.35),
        ("olmo2-13b", 64, 2, 4400 / 1.25, 4400 / 1.15),
    ],
)
def test_tokens_a_second_beside_published_ones(model, processes, micro_batch, low, high):
    shape = PRESETS[model]
    training = dataclasses.replace(
        ONE, global_batch_size=16 * processes, micro_batch_size=micro_batch
    )
    step = step_time(shape, Layout(processes), training, list(group_sizes(shape)), Machine())
    tokens = 16 * 4096 / step.total
    assert low < tokens < high


def test_mixtral_beside_megatrons_published_speed():
    """468 TFLOP/s a GPU with kernels that are fused and a pipeline that is interleaved; the table's
    rows are of layers that aren't, and come to less than half. It must not come to more unseen.
    """
    mixtral = ModelConfig(32_000, 4096, 14_336, 32, 32, 8).with_experts(8, 2)
    training = dataclasses.replace(ONE, global_batch_size=256, micro_batch_size=1)
    layout = Layout(64, pipeline=4, expert=8)
    groups = list(group_sizes(mixtral))
    step = step_time(mixtral, layout, training, groups, Machine())
    pairs = 256 * 4096 * 2048
    flops = step_flops(mixtral, Work(256 * 4096, pairs, pairs), groups).total
    assert 0.4 < flops / step.total / 64 / 468e12 < 0.5


def test_layouts_are_ranked_by_time_and_fit():
    model, groups = PRESETS["olmo2-7b"].with_experts(2), list(EXPERT_GROUPS)
    training = dataclasses.replace(ONE, global_batch_size=128, sequence_length=8192)
    machine = Machine(memory=72)
    choices = ranked_choices(model, training, groups, Layout(64), machine)
    assert len(choices) > 100
    assert [c.seconds for c in choices] == sorted(c.seconds for c in choices)
    for choice in choices[:5]:
        changed = dataclasses.replace(
            training, micro_batch_size=choice.micro_batch_size, recompute=choice.recompute
        )
        assert training_memory(model, choice.layout, changed, groups) == choice.memory
        assert choice.memory.total <= 72 << 30 and choice.layout.processes == 64
        assert choice.seconds == pytest.approx(
            stage_seconds(model, choice.layout, changed, groups, 1, machine)
        )
    best = recommended(choices)
    assert best.seconds <= 1.02 * choices[0].seconds and best.layout.expert == 1
    assert not [c for c in choices if c.layout.tensor * c.layout.context > 8]


def test_a_file_system_is_as_fast_as_its_nodes_or_as_it_is():
    files = FileSystem(total=100, node=5)
    assert files.seconds(60.6e9, 8) == pytest.approx(60.6 / 40)
    assert files.seconds(381e9, 128) == pytest.approx(3.81)


def test_every_row_says_where_it_is_from():
    assert all(row.source and 0 < row.mfu < 1 and math.isfinite(row.mfu) for row in TABLE)
