"""The switches of `deterministic: true`, and that a stage turns them in time."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import transformer_config
from megatron_bar.recipe.training import Rlvr, Training
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.overrides import transformer_overrides

_PREPARED = """
import os, torch
from megatron_bar.recipe.training import Rlvr, Training
from megatron_bar.stages.rlvr import RlvrStage
from megatron_bar.stages.train import SftStage
{kind}.prepare()
print(os.environ.get("CUBLAS_WORKSPACE_CONFIG"), os.environ.get("NCCL_ALGO"),
      os.environ.get("NVTE_ALLOW_NONDETERMINISTIC_ALGO"),
      torch.are_deterministic_algorithms_enabled(), torch.cuda.is_initialized())
"""


def _prepared(stage: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _PREPARED.format(kind=stage)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_stage_turns_all_switches_before_cuda_starts():
    stage = "SftStage('math/sft', training=Training(deterministic={}), seed=0)"
    assert _prepared(stage.format(True)) == ":4096:8 ^NVLS 0 True False"
    assert _prepared(stage.format(False)) == "None None None False False"
    assert (
        _prepared(
            "RlvrStage('math/rlvr', training=Rlvr(deterministic=True, backend='native'), seed=0)"
        )
        == ":4096:8 ^NVLS 0 True False"
    )


def test_megatron_is_told_too():
    for training in (Training(deterministic=True), Rlvr(deterministic=True)):
        config = transformer_config(
            ModelConfig(96, 32, 48, 1, 4, 2),
            Layout(),
            torch.float32,
            overrides=transformer_overrides(training),
        )
        assert config.deterministic_mode
