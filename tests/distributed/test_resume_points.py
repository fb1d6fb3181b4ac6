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
from megatron_bar.training.saved import saved_steps
from megatron_bar.training.saved_files import DIGESTS
from tests.distributed.stages import run, training
from tests.layouts import EXPERTS

pytestmark = pytest.mark.distributed


def _tensor_bytes(folder):
    return {
        path.name: path.read_bytes()
        for pattern in ("*.safetensors", "*.distcp")
        for path in folder.glob(pattern)
    }


@pytest.mark.parametrize("layout, dtype", [("tp1", "bfloat16"), ("tp2pp2ep2", "float32")])
def test_a_resume_point_is_the_model_of_its_step(layout, dtype, checkpoint, tmp_path, monkeypatch):
    """Its twin is a whole checkpoint that the same ranks wrote after the same step."""
    whole, point = tmp_path / "whole", tmp_path / "run" / "resume" / "2"
    settings = training(SFT_GROUPS, save_every=2, dtype=dtype)
    with pytest.raises(JobFailed):
        run(
            checkpoint,
            EXPERTS[layout],
            settings,
            tmp_path / "run",
            die_at_save=True,
            snapshots={2: whole},
        )
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
    files = [
        path.name
        for path in whole.iterdir()
        if path.is_file() and path.name not in ("model.json", "start.json")
    ]
    assert DIGESTS in files
    for name, size in itertools.product(files, (None, 0, 100)):
        if size is None and name == DIGESTS:
            continue  # as states of earlier versions have none
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
        assert (
            said.endswith(
                "; remove it to go on from the state before, or the stage's folder to start anew"
            )
            and "\n" not in said
        ), said


def test_a_state_that_nobody_can_check_is_gone_on_from_with_a_warning(checkpoint, tmp_path):
    """Those of earlier versions have no digests."""
    settings, folder = training(MIDTRAIN_GROUPS, save_every=2), tmp_path / "run"
    with pytest.raises(JobFailed):
        run(checkpoint, Layout(), settings, folder, die_at_save=True)
    (folder / "resume" / "2" / DIGESTS).unlink()
    run(checkpoint, Layout(), settings, folder, log=tmp_path / "log")
    said = (tmp_path / "log").read_text()
    assert f"warning: {folder / 'resume' / '2'} has no digests" in said
    assert "goes on after step 2\n" in said


@pytest.mark.parametrize("layout, save_async", [("tp1", False), ("dp2", True)])
def test_the_state_before_a_damaged_one_is_gone_on_from(layout, save_async, checkpoint, tmp_path):
    """A page of zeros, as a lost node leaves it, which no size and no header tells."""
    settings = training(MIDTRAIN_GROUPS, save_every=1, keep=2, save_async=save_async)
    run(checkpoint, EXPERTS[layout], settings, tmp_path / "undisturbed")
    folder = tmp_path / "run"
    for _ in range(2):  # a state each
        with pytest.raises(JobFailed):
            run(checkpoint, EXPERTS[layout], settings, folder, die_at_save=True)
    first, last = saved_steps(folder)
    (damaged, *_) = sorted((folder / "resume" / str(last)).glob("*.distcp"))
    with open(damaged, "r+b") as file:
        file.seek(damaged.stat().st_size // 2)
        file.write(bytes(64))
    run(checkpoint, EXPERTS[layout], settings, folder, log=tmp_path / "log")
    said = (tmp_path / "log").read_text()
    assert (
        f"the state after step {last} is damaged: {damaged.name} isn't what was written" in said
        and f"goes on after step {first}\n" in said
    )
    assert group_digests(folder / "checkpoint") == group_digests(
        tmp_path / "undisturbed" / "checkpoint"
    )
