"""What a stage that was cut short has saved is a model to every converter."""

from __future__ import annotations

import itertools
import os
import shutil

import pytest
import torch

from megatron_bar.checkpoints import average
from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.checkpoints.merge import merge
from megatron_bar.checkpoints.verify import verify_folder
from megatron_bar.launch.processes import JobFailed
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.train import MIDTRAIN_GROUPS, SFT_GROUPS
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


def test_a_damaged_state_is_named_in_a_line(checkpoint, tmp_path):
    settings = training(MIDTRAIN_GROUPS, save_every=2)
    with pytest.raises(JobFailed):
        run(checkpoint, Layout(), settings, tmp_path / "whole", die_at_save=True)
    whole = tmp_path / "whole" / "resume" / "2"
    files = [path.name for path in whole.iterdir()
             if path.is_file() and path.name not in ("model.json", "start.json")]
    for name, size in itertools.product(files, (None, 0, 100)):
        if size is not None and whole.joinpath(name).stat().st_size <= size:
            continue
        folder = tmp_path / f"{name}-{size}"
        shutil.copytree(tmp_path / "whole", folder)
        damaged = folder / "resume" / "2" / name
        damaged.unlink() if size is None else os.truncate(damaged, size)
        with pytest.raises(JobFailed) as raised:
            run(checkpoint, Layout(), settings, folder)
        said = str(raised.value)
        assert said.startswith(f"{damaged.parent} can't be loaded: "), said
        assert said.endswith("; remove it to go on from the state before, or the stage's folder to "
                             "start anew") and "\n" not in said, said
