"""What a plan suggests where a stage doesn't fit its GPUs."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_bar.costs.fitting import nearest_fit, suggest_evaluation, suggest_training
from megatron_bar.costs.memory import training_memory
from megatron_bar.models.presets import PRESETS
from megatron_bar.recipe.schema import Evaluate
from megatron_bar.recipe.training import Rlvr, Training
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.rlvr import RLVR_GROUPS
from megatron_bar.training.groups import group_sizes

GIB = 1 << 30


def test_the_nearest_layout_that_fits_fits_and_changes_least():
    model = PRESETS["olmo2-32b"].with_experts(2)
    training = Training(dtype="bfloat16", global_batch_size=512, sequence_length=4096)
    groups = ["expert.1", "router.1"]
    asked = Layout(256)
    assert training_memory(model, asked, training, groups).total > 80 * GIB
    fits = nearest_fit(model, asked, training, groups, 80 * GIB)
    assert fits.processes == 256
    assert training_memory(model, fits, training, groups).total <= 80 * GIB
    assert nearest_fit(model, fits, training, groups, 80 * GIB) == fits
    assert nearest_fit(model, Layout(1), training, groups, 80 * GIB) is None


def test_one_key_is_changed_before_the_layout_is():
    model, groups = PRESETS["olmo2-7b"].with_experts(2), ["expert.1", "router.1"]
    layout, limit = Layout(64, tensor=2, expert=2), 80 * GIB
    wide = Training(dtype="float32", global_batch_size=256, micro_batch_size=4, recompute="full")
    assert suggest_training(model, layout, wide, groups, limit) == {"dtype": "bfloat16"}
    long = Training(dtype="bfloat16", global_batch_size=256, sequence_length=16384)
    assert suggest_training(model, layout, long, groups, limit) == {"recompute": "full"}
    both = dataclasses.replace(long, micro_batch_size=16)
    assert suggest_training(model, layout, both, groups, limit) == {
        "micro_batch_size": 1,
        "recompute": "full",
    }
    fp8 = Training(dtype="bfloat16", global_batch_size=256, fp8_frozen_experts=True)
    in_fp8, plain = (
        training_memory(model, Layout(64), settings, groups)
        for settings in (fp8, dataclasses.replace(fp8, fp8_frozen_experts=False))
    )
    assert in_fp8.total - plain.total == pytest.approx(2 * group_sizes(model)["expert.0"], rel=1e-3)
    between = (in_fp8.total + plain.total) // 2
    suggestion = suggest_training(model, Layout(64), fp8, groups, between)
    assert suggestion == {"fp8_frozen_experts": False}
    many = Rlvr(dtype="bfloat16", recompute="full", rollout_batch_size=64, steps=3)
    suggestion = suggest_training(model, Layout(32, tensor=2, expert=2), many, RLVR_GROUPS, limit)
    assert suggestion == {"rollout_batch_size": 32}
    asked = Evaluate(batch_size=128, dtype="bfloat16", max_new_tokens=2048)
    assert suggest_evaluation(model, layout, asked, limit) == {"batch_size": 64}
    assert suggest_evaluation(model, Layout(), asked, 8 * GIB) is None
