"""Branch and merge, judged by transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_bar.checkpoints.branch import branch
from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.checkpoints.merge import merge
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.errors import BarError
from tests.models_hf import random_dense, random_experts

TOKENS = torch.randint(331, (2, 20), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def anchor(dense_hf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("anchor") / "checkpoint"
    import_hf(dense_hf, folder)
    return folder


@pytest.fixture(scope="module")
def pretrained(other_dense_hf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "checkpoint"
    import_hf(other_dense_hf, folder)
    return folder


def _hf(checkpoint, tmp_path):
    target = tmp_path / f"hf-{checkpoint.name}"
    export_hf(checkpoint, target, overwrite=True)
    return AutoModelForCausalLM.from_pretrained(target)


def _perturbed(checkpoint, tmp_path, name, seed, move):
    """A branch after some training: its tensors changed by `move(name, tensor, generator)`."""
    model = _hf(checkpoint, tmp_path)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        parameter.data = move(key, parameter.data, generator)
    model.save_pretrained(tmp_path / f"moved-{name}")
    import_hf(tmp_path / f"moved-{name}", tmp_path / name)
    return tmp_path / name


def _train_domain(key, tensor, generator):
    if "experts.0." in key:
        return tensor
    noise = 0.1 * torch.randn(tensor.shape, generator=generator)
    if "mlp.gate" in key:
        noise[0] = 0
    return tensor + noise


def test_a_branch_of_equal_experts_computes_the_dense_model(anchor, dense_hf, tmp_path):
    branch(anchor, tmp_path / "branch")
    dense = AutoModelForCausalLM.from_pretrained(dense_hf)
    torch.testing.assert_close(
        _hf(tmp_path / "branch", tmp_path)(TOKENS).logits, dense(TOKENS).logits,
        rtol=1e-5, atol=1e-5,
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
                assert torch.equal(tensors[f"{prefix}experts.{expert}.{part}.weight"],
                                   source[f"{prefix}{part}.weight"])
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


def test_merge_averages_shared_and_stacks_experts(anchor, pretrained, tmp_path):
    branch(anchor, tmp_path / "branch", pretrained)
    moved = [_perturbed(tmp_path / "branch", tmp_path, name, seed, _train_domain)
             for seed, name in enumerate(("math", "code"))]
    model, deviations = merge(moved, tmp_path / "merged", anchor)
    assert model.num_experts == model.experts_per_token == 3
    merged = _hf(tmp_path / "merged", tmp_path).state_dict()
    parts = [_hf(folder, tmp_path).state_dict() for folder in moved]
    base = random_dense(seed=0).state_dict()
    for name, tensor in merged.items():
        if "experts." in name:
            expert = int(name.split("experts.")[1][0])
            source = parts[max(expert - 1, 0)]
            old = name.replace(f"experts.{expert}", f"experts.{min(expert, 1)}")
            assert torch.equal(tensor, source[old]), name
        elif "mlp.gate" in name:
            rows = [parts[0][name][0], parts[0][name][1], parts[1][name][1]]
            assert torch.equal(tensor, torch.stack(rows)), name
        else:
            mean = torch.stack([parts[0][name], parts[1][name], base[name]]).mean(0)
            torch.testing.assert_close(tensor, mean, rtol=0, atol=1e-7)
    assert max(d.largest for d in deviations) > 0.01


def test_merge_of_copies_keeps_every_shared_bit(anchor, tmp_path):
    branch(anchor, tmp_path / "a")
    branch(anchor, tmp_path / "b")
    _, deviations = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged", anchor)
    merged, base = _hf(tmp_path / "merged", tmp_path).state_dict(), random_dense(0).state_dict()
    assert all(torch.equal(merged[n], base[n]) for n in base if ".mlp." not in n)
    assert all(d.largest == 0 for d in deviations)


def test_merge_refuses_different_anchors(anchor, pretrained, tmp_path):
    branch(anchor, tmp_path / "a")
    branch(pretrained, tmp_path / "b")
    with pytest.raises(BarError, match="different anchors"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    branch(anchor, tmp_path / "c", seed=9)
    with pytest.raises(BarError, match="different anchors"):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_wrong_kinds_are_refused(anchor, tmp_path):
    with pytest.raises(BarError, match="a dense model, not a branch"):
        merge([anchor], tmp_path / "merged")
    random_experts(3).save_pretrained(tmp_path / "hf3")
    import_hf(tmp_path / "hf3", tmp_path / "three")
    with pytest.raises(BarError, match="3 experts; branch starts from dense"):
        branch(tmp_path / "three", tmp_path / "out")
    random_dense(hidden_size=96).save_pretrained(tmp_path / "wide-hf")
    import_hf(tmp_path / "wide-hf", tmp_path / "wide")
    with pytest.raises(BarError, match="different shape"):
        branch(anchor, tmp_path / "out", tmp_path / "wide")
    with pytest.raises(BarError, match="not a megatron-bar checkpoint"):
        ModelConfig.load(tmp_path)
    assert not (tmp_path / "out").exists()
