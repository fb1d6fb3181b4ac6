"""The law of number types, stage by stage: whatever a checkpoint is stored in and a stage computes
in, what trains changes, all else keeps its bits, and each tensor its type.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_bar.checkpoints.branch import branch
from megatron_bar.checkpoints.convert import export_hf
from megatron_bar.checkpoints.merge import merge
from megatron_bar.checkpoints.number_types import stored_types
from megatron_bar.launch.processes import JobFailed
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.rlvr import RLVR_GROUPS
from megatron_bar.stages.route import ROUTE_GROUPS
from megatron_bar.stages.train import MIDTRAIN_GROUPS, SFT_GROUPS
from megatron_bar.training.groups import group_digests
from megatron_bar.training.metrics import read_metrics
from tests.distributed.stages import STEPS, run, training
from tests.layouts import EXPERTS
from tests.models_hf import imported, random_dense, random_experts

pytestmark = pytest.mark.distributed

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# By the word in a Hugging Face name, the type of what is stored otherwise than the rest.
STORED = {
    "bf16": (BF16, {}),
    "fp16": (FP16, {}),
    "fp32": (FP32, {}),
    "bf16 with fp32 norms and routers": (BF16, {"norm": FP32, "gate.weight": FP32}),
    "fp32 with bf16 embeddings": (FP32, {"embed": BF16, "lm_head": BF16}),
}


def stored_as(model: torch.nn.Module, kind: str, folder: Path) -> Path:
    """The model in a checkpoint whose tensors have the types of `kind`."""
    usual, others = STORED[kind]
    for name, parameter in model.named_parameters():
        dtype = next((t for word, t in others.items() if word in name), usual)
        parameter.data = parameter.data.to(dtype)
    return imported(model, folder)


@pytest.mark.parametrize(
    "kind, dtype, groups, layout",
    [
        ("bf16", None, MIDTRAIN_GROUPS, "tp2ep2"),
        ("bf16", None, RLVR_GROUPS, "tp1"),
        ("bf16", "float32", SFT_GROUPS, "tp2ep2"),
        ("fp32", "bfloat16", SFT_GROUPS, "tp2ep2"),
        ("fp32", "bfloat16", MIDTRAIN_GROUPS, "pp2"),
        ("fp16", None, SFT_GROUPS, "dp2"),
        ("fp16", "bfloat16", MIDTRAIN_GROUPS, "tp1"),
        ("bf16 with fp32 norms and routers", None, RLVR_GROUPS, "tp2ep2"),
        ("bf16 with fp32 norms and routers", None, ROUTE_GROUPS, "dp2"),
        ("bf16 with fp32 norms and routers", None, ("expert.1",), "ep2"),
        ("fp32 with bf16 embeddings", None, ("expert.1", "embeddings"), "tp2"),
    ],
    ids=str,
)
def test_a_stage_writes_each_tensor_in_the_type_it_came_in(kind, dtype, groups, layout, tmp_path):
    checkpoint = stored_as(random_experts(2), kind, tmp_path)
    run(checkpoint, EXPERTS[layout], training(groups, dtype=dtype), tmp_path / "run")
    trained = tmp_path / "run" / "checkpoint"
    assert stored_types(trained) == stored_types(checkpoint)
    before, after = group_digests(checkpoint), group_digests(trained)
    moved = {group for group in before if before[group] != after[group]}
    opened = {"router.0", "router.1"} if groups is ROUTE_GROUPS else set(groups)
    assert moved == opened
    export_hf(trained, tmp_path / "exported")
    found, source = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("exported", "hf")
    )
    assert {name: t.dtype for name, t in found.items()} == {
        name: t.dtype for name, t in source.items()
    }


@pytest.mark.parametrize(
    "kind, dtype, layout",
    [
        ("bf16", None, "tp2ep2"),
        ("fp32", "bfloat16", "dp2"),
        ("bf16", "float32", "tp1"),
    ],
)
def test_a_stage_that_is_cut_short_goes_on_to_the_same_bits(kind, dtype, layout, tmp_path):
    """And what it leaves to go on from is read in the types of its start, too."""
    checkpoint = stored_as(random_experts(2), kind, tmp_path)
    settings = training(SFT_GROUPS, dtype=dtype, save_every=STEPS // 2)
    run(checkpoint, EXPERTS[layout], settings, tmp_path / "whole")
    with pytest.raises(JobFailed):
        run(checkpoint, EXPERTS[layout], settings, tmp_path / "cut", die_at_save=True)
    point = tmp_path / "cut" / "resume" / str(STEPS // 2)
    assert stored_types(point) == stored_types(checkpoint)
    before, half_way = group_digests(checkpoint), group_digests(point)
    assert {g for g in before if before[g] != half_way[g]} == set(SFT_GROUPS)
    run(checkpoint, EXPERTS[layout], settings, tmp_path / "cut")
    digests = [group_digests(tmp_path / name / "checkpoint") for name in ("cut", "whole")]
    assert digests[0] == digests[1]


def test_a_stage_computes_in_what_its_start_is_stored_in(tmp_path):
    """In fp32 on the same numbers, the losses differ from those in bf16."""
    losses = {}
    checkpoint = stored_as(random_experts(2), "bf16", tmp_path)
    for dtype in (None, "bfloat16", "float32"):
        run(checkpoint, Layout(), training(SFT_GROUPS, dtype=dtype), tmp_path / str(dtype))
        losses[dtype] = [line["loss"] for line in read_metrics(tmp_path / str(dtype))]
    assert losses[None] == losses["bfloat16"] != losses["float32"]
    assert losses[None] == pytest.approx(losses["float32"], rel=0.02)


def test_a_weight_that_its_type_cannot_say_is_refused(tmp_path):
    model = random_experts(2)
    checkpoint = stored_as(model, "fp16", tmp_path)
    with pytest.raises(JobFailed, match="overflows float16, in which the checkpoint"):
        run(checkpoint, Layout(), training(("head",), lr=1e5, max_grad_norm=0.0), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint").exists()


@pytest.mark.parametrize(
    "anchor, pretrained",
    [("bf16", "fp32"), ("fp32", "bf16"), ("bf16 with fp32 norms and routers", "fp16")],
)
def test_a_branch_has_the_anchors_types(anchor, pretrained, tmp_path, capsys):
    """As OLMo-2 7B is published: the post-trained model in bf16, the pretrained one in fp32."""
    models = random_dense(seed=0), random_dense(seed=1)
    folders = [
        stored_as(model, kind, tmp_path / name)
        for model, kind, name in zip(models, (anchor, pretrained), ("anchor", "pretrained"))
    ]
    branch(folders[0], tmp_path / "branch", folders[1])
    assert "starts from them in the anchor's" in capsys.readouterr().out
    dense, types = (stored_types(folder) for folder in (folders[0], tmp_path / "branch"))
    layer = "decoder.layers.mlp."
    assert types[f"{layer}router.weight"] == dense[f"{layer}linear_fc1.weight"]
    assert dense.items() - types.items() <= {
        (key, dtype) for key, dtype in dense.items() if "mlp.linear" in key
    }
    export_hf(tmp_path / "branch", tmp_path / "exported")
    tensors = load_file(tmp_path / "exported" / "model.safetensors")
    for name, weight in models[1].state_dict().items():
        if ".mlp." in name:
            expert = tensors[name.replace(".mlp.", ".mlp.experts.1.")]
            assert torch.equal(expert, weight.to(expert.dtype)), name


def test_models_of_unlike_types_are_not_merged(tmp_path):
    anchor = stored_as(random_dense(), "bf16", tmp_path / "anchor")
    wide = stored_as(random_dense(), "bf16 with fp32 norms and routers", tmp_path / "wide")
    branches = [tmp_path / "narrow-branch", tmp_path / "wide-branch"]
    for folder, target in zip((anchor, wide), branches):
        branch(folder, target, expert_name=target.name)
    with pytest.raises(BarError, match=r"stores \S+norm\S* in float32 and .* in bfloat16; models"):
        merge(branches, tmp_path / "merged", anchor)
    assert not (tmp_path / "merged").exists()
    merge(branches[:1], tmp_path / "merged", anchor)
    assert stored_types(tmp_path / "merged") == stored_types(branches[0])
