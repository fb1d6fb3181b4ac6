"""Branch, judged by transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_bar.checkpoints.branch import branch
from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.errors import BarError
from tests.models_hf import random_dense, random_experts

TOKENS = torch.randint(331, (2, 20), generator=torch.Generator().manual_seed(3))


def _hf(checkpoint, tmp_path):
    target = tmp_path / f"hf-{checkpoint.name}"
    export_hf(checkpoint, target, overwrite=True)
    return AutoModelForCausalLM.from_pretrained(target)


def test_a_branch_of_equal_experts_computes_the_dense_model(anchor, dense_hf, tmp_path):
    branch(anchor, tmp_path / "branch")
    dense = AutoModelForCausalLM.from_pretrained(dense_hf)
    torch.testing.assert_close(
        _hf(tmp_path / "branch", tmp_path)(TOKENS).logits,
        dense(TOKENS).logits,
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_branch_takes_its_expert_from_the_pretrained_model(anchor, pretrained, tmp_path):
    model = branch(anchor, tmp_path / "branch", pretrained, "math", seed=5)
    assert model.all_expert_names == ("anchor", "math")
    tensors = _hf(tmp_path / "branch", tmp_path).state_dict()
    ours, theirs = random_dense(seed=0).state_dict(), random_dense(seed=1).state_dict()
    for layer in range(4):
        prefix = f"model.layers.{layer}.mlp."
        for part in ("gate_proj", "up_proj", "down_proj"):
            for expert, source in enumerate((ours, theirs)):
                assert torch.equal(
                    tensors[f"{prefix}experts.{expert}.{part}.weight"],
                    source[f"{prefix}{part}.weight"],
                )
        router = tensors[f"{prefix}gate.weight"]
        assert 0.01 < router.std() < 0.03 and router.abs().max() <= 0.06
    shared = [name for name in ours if ".mlp." not in name]
    assert all(torch.equal(tensors[name], ours[name]) for name in shared)


def test_branches_of_one_seed_share_their_anchor_row(anchor, tmp_path):
    rows = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        branch(anchor, tmp_path / name, seed=seed)
        rows.append(_hf(tmp_path / name, tmp_path).state_dict()["model.layers.2.mlp.gate.weight"])
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_wrong_kinds_are_refused(anchor, tmp_path):
    random_experts(3).save_pretrained(tmp_path / "hf3")
    import_hf(tmp_path / "hf3", tmp_path / "three")
    with pytest.raises(BarError, match="3 experts; branch starts from dense"):
        branch(tmp_path / "three", tmp_path / "out")
    random_dense(hidden_size=96).save_pretrained(tmp_path / "wide-hf")
    import_hf(tmp_path / "wide-hf", tmp_path / "wide")
    with pytest.raises(BarError, match=r"different shape: hidden_size is 96 and 48$"):
        branch(anchor, tmp_path / "out", tmp_path / "wide")
    with pytest.raises(BarError, match="not a megatron-bar checkpoint"):
        ModelConfig.load(tmp_path)
    assert not (tmp_path / "out").exists()
