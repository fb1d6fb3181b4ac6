"""What a stage that was cut short has saved is a model to every converter."""

from __future__ import annotations

import pytest
import torch

from megatron_bar.checkpoints import average
from megatron_bar.checkpoints.convert import export_hf, import_hf
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
def test_a_resume_point_is_the_model_of_its_step(
    layout, dtype, checkpoint, tmp_path, monkeypatch
):
    """Its twin is a whole checkpoint that the same ranks wrote after the same step."""
    whole, point = tmp_path / "whole", tmp_path / "run" / "resume" / "2"
    settings = training(SFT_GROUPS, save_every=2, dtype=dtype)
    with pytest.raises(JobFailed):
        run(checkpoint, EXPERTS[layout], settings, tmp_path / "run", die_at_save=True,
            snapshots={2: whole})
    assert "have the model's shapes" in verify_folder(point)
    for name, source in {"whole": whole, "point": point}.items():
        export_hf(source, tmp_path / f"hf-{name}", dtype=getattr(torch, dtype))
    assert _tensor_bytes(tmp_path / "hf-whole") == _tensor_bytes(tmp_path / "hf-point") != {}
    if dtype == "float32":
        assert group_digests(point) == group_digests(whole) != group_digests(checkpoint)
        # Imported anew, each tensor lies in one chunk, and isn't put together band by band.
        import_hf(tmp_path / "hf-whole", tmp_path / "in-one")
        monkeypatch.setattr(average, "_BAND", 1000)
        merged = []
        for source in (whole, point, tmp_path / "in-one"):
            merge([source, checkpoint], tmp_path / "merged", average="branches", overwrite=True)
            merged.append(_tensor_bytes(tmp_path / "merged"))
        assert merged[0] == merged[1] == merged[2] != {}
