"""Memory as it is allocated: weights, gradients, optimizer state, saved states, activations."""

from __future__ import annotations

import dataclasses
import json

import pytest

from megatron_bar.costs.memory import rank_memory, saved_bytes
from megatron_bar.launch import processes
from megatron_bar.launch.processes import JobFailed
from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.train import MIDTRAIN_GROUPS, SFT_GROUPS
from megatron_bar.training.groups import group_sizes
from tests.distributed import ranks, stages
from tests.layouts import EXPERTS
from tests.models_hf import imported, random_model


@pytest.mark.distributed
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name, groups, training",
    [
        ("tp1", SFT_GROUPS, Training(dtype="bfloat16")),
        ("tp2", SFT_GROUPS, Training(dtype="float32", distributed_optimizer=False)),
        ("pp2", ("*",), Training(dtype="bfloat16", distributed_optimizer=False)),
        ("dp2", SFT_GROUPS, Training(dtype="float32")),
        ("ep2", MIDTRAIN_GROUPS, Training(dtype="bfloat16")),
        ("cp2ep2", SFT_GROUPS, Training(dtype="float32")),
        ("tp2ep2", SFT_GROUPS, Training(dtype="bfloat16")),
        ("tp2ep2", SFT_GROUPS, Training(dtype="bfloat16", fp8_frozen_experts=True)),
        ("tp2pp2", SFT_GROUPS, Training(dtype="bfloat16", fp8_frozen_experts=True)),
        ("tp2pp2ep2", ("*",), Training(dtype="float32")),
    ],
)
def test_memory_is_what_megatron_allocates(name, groups, training, checkpoint, tmp_path):
    _compare_memory(EXPERTS[name], groups, training, checkpoint, tmp_path)


@pytest.mark.distributed
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name, groups", [("tp1", ("*",)), ("tp2pp2", ("*",)), ("pp2", SFT_GROUPS)])
def test_memory_of_tied_embeddings_is_what_megatron_allocates(name, groups, tmp_path):
    """The last pipeline rank has a copy of them."""
    model = random_model("Qwen3-MoE", tie_word_embeddings=True)
    training = Training(dtype="bfloat16", distributed_optimizer=False)
    (tmp_path / "ranks").mkdir()
    _compare_memory(EXPERTS[name], groups, training, imported(model, tmp_path), tmp_path / "ranks")


def _compare_memory(layout, groups, training, checkpoint, tmp_path):
    processes.start(
        ranks.allocations,
        checkpoint,
        layout,
        training,
        groups,
        tmp_path,
        processes=layout.processes,
        timeout_seconds=200,
    ).wait()
    model = ModelConfig.load(checkpoint)
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("rank-*.json"))]
    assert len(found) == layout.processes
    optimizer = 0
    for real in found:
        planned = rank_memory(
            model, layout, training, real["trainable"], real["pipeline_rank"], real["expert_rank"]
        )
        assert planned.weights == real["weights"]
        assert planned.gradients == real["gradients"]
        optimizer += planned.optimizer - real["optimizer"]
    # The distributed optimizer cuts its buffers where it likes; nothing is lost or held twice.
    assert abs(optimizer) <= len(found)


@pytest.mark.distributed
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_states_are_as_large_as_planned(dtype, checkpoint, tmp_path):
    settings = stages.training(SFT_GROUPS, steps=2, save_every=1, dtype=dtype)
    with pytest.raises(JobFailed):
        stages.run(checkpoint, Layout(), settings, tmp_path, die_at_save=True)
    sizes = group_sizes(ModelConfig.load(checkpoint))
    planned = saved_bytes(settings, sum(sizes[group] for group in SFT_GROUPS))
    (saved,) = (tmp_path / "resume").iterdir()
    found = sum(path.stat().st_size for path in saved.glob("*.distcp"))
    assert planned <= found <= 1.2 * planned  # with 60 headers, and rows that pad the vocabulary


# Deep and of a small vocabulary, so that the layers decide.
_DENSE = ModelConfig(128, 48, 80, 8, 6, 2)
_QWEN3 = dataclasses.replace(
    _DENSE,
    norm_placement="before",
    qk_norm="per_head",
    kv_channels=12,
    tied_embeddings=True,
    family="qwen3",
)


@pytest.mark.distributed
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "model, groups, low, high",
    [
        (_DENSE, ("*",), 0.85, 1.15),
        (_DENSE.with_experts(3), ("*",), 0.85, 1.15),
        (_DENSE.with_experts(3), MIDTRAIN_GROUPS, 1.0, 1.5),
        (_DENSE.with_experts(4, 2), ("*",), 0.85, 1.15),
        (_QWEN3, ("*",), 0.85, 1.15),
        (_QWEN3.with_experts(3), MIDTRAIN_GROUPS, 1.0, 1.5),
    ],
    ids=["dense", "all experts", "frozen", "two of four", "norms before", "norms before frozen"],
)
def test_activations_are_estimated_near_what_autograd_keeps(model, groups, low, high, tmp_path):
    training = Training(
        dtype="float32", micro_batch_size=2, global_batch_size=2, sequence_length=64
    )
    processes.start(
        ranks.kept_for_backward, model, training, groups, tmp_path, timeout_seconds=200
    ).wait()
    kept = json.loads((tmp_path / "kept.json").read_text())
    memory = rank_memory(model, Layout(), training, groups, 0, 0)
    assert low <= memory.activations / kept <= high
