"""Converters read what a model on the device has written, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_bar.checkpoints.branch import branch
from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.checkpoints.merge import merge
from megatron_bar.checkpoints.model_io import load_model, save_model
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.groups import group_digests
from tests.models_hf import cast, imported, random_model


def _written(checkpoint: Path, out: Path, dtype: torch.dtype, device: torch.device) -> Path:
    """The same model once more, by way of the device."""
    with process_groups(Layout()):
        config = ModelConfig.load(checkpoint)
        model = build_model(config, Layout(), dtype)
        load_model(model, checkpoint)
        assert {p.device.type for p in model.parameters()} == {device.type}
        out.mkdir()
        save_model(model, out)
        config.save(out)
    return out


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["OLMo-2", "OLMo-3", "Qwen3, tied", "FlexOlmo", "Qwen3-MoE"])
def test_an_export_has_the_bits_of_the_import(name, dtype, device, tmp_path):
    checkpoint = imported(cast(random_model(name), dtype), tmp_path)
    written = _written(checkpoint, tmp_path / "written", dtype, device)
    export_hf(written, tmp_path / "exported")
    before, after = _tensors(tmp_path / "hf"), _tensors(tmp_path / "exported")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    import_hf(tmp_path / "exported", tmp_path / "again")
    assert group_digests(tmp_path / "again") == group_digests(checkpoint)


def test_branch_and_merge_keep_the_anchors_bits(device, tmp_path):
    for seed, name in enumerate(("anchor", "pretrained")):
        (tmp_path / name).mkdir()
        made = imported(cast(random_model("OLMo-2", seed), torch.bfloat16), tmp_path / name)
        _written(made, tmp_path / f"written-{name}", torch.bfloat16, device)
    branches = []
    for domain, pretrained in (("math", tmp_path / "written-pretrained"), ("code", None)):
        made = tmp_path / f"branch-{domain}"
        branch(tmp_path / "written-anchor", made, pretrained, domain)
        branches.append(_written(made, tmp_path / domain, torch.bfloat16, device))
    merge(branches, tmp_path / "merged", anchor=tmp_path / "written-anchor")
    found = []
    for folder in (tmp_path / "merged", *branches):
        export_hf(folder, tmp_path / f"hf-{folder.name}")
        found.append(_tensors(tmp_path / f"hf-{folder.name}"))
    merged, *of_branches = found
    for key in (key for key in merged if ".experts." in key):
        layer, _, rest = key.partition(".experts.")
        expert, _, name = rest.partition(".")
        branch_of = of_branches[max(0, int(expert) - 1)]  # each has the anchor as its first
        theirs = branch_of[f"{layer}.experts.{min(int(expert), 1)}.{name}"]
        assert torch.equal(merged[key], theirs), key
