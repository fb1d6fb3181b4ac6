"""What a stage that was cut short has saved is a model to every converter."""

from __future__ import annotations

import pytest
import torch

from megatron_bar.checkpoints.convert import export_hf
from megatron_bar.checkpoints.merge import merge
from megatron_bar.checkpoints.verify import verify_folder
from megatron_bar.launch.processes import JobFailed
from megatron_bar.recipe.graph import SFT_GROUPS
from megatron_bar.training.groups import group_digests
from tests.distributed.stages import run, training
from tests.layouts import EXPERTS

pytestmark = pytest.mark.distributed


def _tensor_bytes(folder):
    return {path.name: path.read_bytes()
            for pattern in ("*.safetensors", "*.distcp") for path in folder.glob(pattern)}


@pytest.mark.parametrize("layout, dtype", [("tp1", "bfloat16"), ("tp2pp2ep2", "float32")])
def test_a_resume_point_is_the_model_of_its_step(layout, dtype, checkpoint, tmp_path):
    """Its twin is a whole checkpoint that the same ranks wrote after the same step."""
    whole, point = tmp_path / "whole", tmp_path / "run" / "resume" / "2"
    settings = training(SFT_GROUPS, save_every=2, dtype=dtype)
    with pytest.raises(JobFailed):
        run(checkpoint, EXPERTS[layout], settings, tmp_path / "run", die_at_save=True,
            snapshots={2: whole})
    assert "have the model's shapes" in verify_folder(point)
    for name, source in {"whole": whole, "point": point}.items():
        export_hf(source, tmp_path / f"hf-{name}", dtype=getattr(torch, dtype))
        merge([source, source], tmp_path / f"merged-{name}", average="branches")
    assert _tensor_bytes(tmp_path / "hf-whole") == _tensor_bytes(tmp_path / "hf-point") != {}
    if dtype == "float32":
        assert group_digests(point) == group_digests(whole) != group_digests(checkpoint)
        merged = _tensor_bytes(tmp_path / "merged-whole")
        assert merged == _tensor_bytes(tmp_path / "merged-point") != {}
