"""With gradients in several buckets the optimizer's moments are saved where they belong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp

from megatron_bar.launch.processes import JobFailed
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.groups import group_digests
from megatron_bar.training.metrics import read_metrics
from tests.distributed.stages import assert_same_numbers, run, training
from tests.layouts import EXPERTS

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

LAYOUTS = {"dp2": EXPERTS["dp2"], "dp3": Layout(3), "tp2ep2": EXPERTS["tp2ep2"]}
# None of them is a multiple of a bucket's unit, so each bucket ends with padding.
BUCKETS = {"overlap_grad_reduce": True, "bucket_size": 1000}


def _settings(**changes) -> Training:
    groups = ("expert.1", "router.1", "attention", "block_norms", "final_norm")
    return training(groups, global_batch_size=6, save_every=2, **changes)


def _killed(checkpoint: Path, layout: Layout, settings: Training, folder: Path, **more) -> Path:
    """The state that a run leaves that is killed after its second step."""
    with pytest.raises(JobFailed):
        run(checkpoint, layout, settings, folder, die_at_save=True, **more)
    return folder / "resume" / "2"


def _moments(point: Path) -> dict[str, torch.Tensor]:
    metadata = dcp.FileSystemReader(point).read_metadata().state_dict_metadata
    moments = {
        key: torch.empty(entry.size)
        for key, entry in metadata.items()
        if key.startswith("optimizer.state.exp_avg")
    }
    dcp.load(moments, storage_reader=dcp.FileSystemReader(point), no_dist=True)
    return moments


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory) -> Path:
    """One process with one bucket: the point that a kill leaves in it, and how it goes on."""
    folder = tmp_path_factory.mktemp("alone")
    _killed(checkpoint, Layout(), _settings(), folder / "killed")
    run(checkpoint, Layout(), _settings(), folder / "whole")
    return folder


@pytest.mark.parametrize("name, other", [("dp2", "dp3"), ("dp3", None), ("tp2ep2", "dp2")])
def test_moments_and_bits(name, other, checkpoint, alone, tmp_path):
    settings = _settings(megatron=BUCKETS)
    point = _killed(checkpoint, LAYOUTS[name], settings, tmp_path / "killed")
    ours, theirs = _moments(point), _moments(alone / "killed" / "resume" / "2")
    assert ours.keys() == theirs.keys()
    for key, moment in theirs.items():
        assert moment.abs().max() > 0
        torch.testing.assert_close(
            ours[key], moment, rtol=1e-3, atol=1e-4 * moment.abs().max().item(), msg=key
        )
    run(checkpoint, LAYOUTS[name], settings, tmp_path / "whole")
    if other is not None:
        shutil.copytree(tmp_path / "killed", tmp_path / "elsewhere")
        run(checkpoint, LAYOUTS[other], settings, tmp_path / "elsewhere")
        assert_same_numbers(read_metrics(tmp_path / "elsewhere"), read_metrics(alone / "whole"))
    run(checkpoint, LAYOUTS[name], settings, tmp_path / "killed")
    assert_same_numbers(read_metrics(tmp_path / "killed"), read_metrics(alone / "whole"))
    assert group_digests(tmp_path / "killed" / "checkpoint") == group_digests(
        tmp_path / "whole" / "checkpoint"
    )


@pytest.mark.parametrize("megatron, warned", [(BUCKETS, 1), ({}, 0)])
def test_a_point_of_an_earlier_version_gets_one_line(megatron, warned, checkpoint, tmp_path):
    """Where it can't be wrong it gets none."""
    settings = _settings(megatron=megatron)
    point = _killed(checkpoint, Layout(), settings, tmp_path / "run", unmarked=True)
    run(checkpoint, Layout(), settings, tmp_path / "run", log=tmp_path / "log")
    said = (tmp_path / "log").read_text()
    assert said.count(f"warning: {point} is of an earlier version") == warned
