"""What a stage will write is told in the types that it will have."""

from __future__ import annotations

import torch

from megatron_bar.checkpoints.convert import import_hf
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.disk_space import sizes_of
from megatron_bar.training.groups import freeze


def test_a_checkpoint_has_the_types_of_its_start(two_experts, tmp_path):
    """Computed in float32, written in bfloat16; a state to go on from is as it was computed."""
    import_hf(two_experts / "hf", tmp_path / "start", dtype=torch.bfloat16)
    config = ModelConfig.load(tmp_path / "start")
    with process_groups(Layout()):
        model = build_model(config, Layout())
        freeze(model, config, ["router.1"])
        alike, narrower = (sizes_of(model, start) for start in (None, tmp_path / "start"))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert narrower.checkpoint == alike.checkpoint / 2
    assert narrower.point == alike.point == (4 + 8) * trained
