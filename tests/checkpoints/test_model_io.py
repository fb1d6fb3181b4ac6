"""A save is written by the rank itself, with the digests of what it wrote."""

from __future__ import annotations

import multiprocessing.process
import os

import pytest
import torch

from megatron_bar.checkpoints.model_io import load_shards, save_shards, sharded_model_state
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.files import file_digest
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.background import BackgroundSave


def _no_process(*args, **more):
    raise AssertionError("a save starts a process")


@pytest.fixture
def model():
    with process_groups(Layout()):
        yield build_model(
            ModelConfig(331, 32, 80, 2, 4, 2).with_experts(2), Layout(), torch.bfloat16
        )


@pytest.mark.parametrize("in_background", [False, True])
def test_no_process_is_started_and_digests_are_the_files(
    in_background, model, tmp_path, monkeypatch
):
    """A fork of a process with CUDA and its threads may hang, and outlives a killed rank."""
    monkeypatch.setattr(os, "fork", _no_process)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", _no_process)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = sharded_model_state(model)
    if in_background:
        saving = BackgroundSave(state, tmp_path)
        with torch.no_grad():
            for parameter in model.parameters():  # training goes on meanwhile
                parameter.zero_()
        digests = saving.finish()
    else:
        digests = save_shards(state, tmp_path)
    assert digests == {p.name: file_digest(p) for p in tmp_path.glob("*.distcp")} != {}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_state_dict(load_shards(sharded_model_state(model), tmp_path), strict=False)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
