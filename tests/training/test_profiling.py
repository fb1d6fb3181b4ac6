"""Traces of the steps that a stage names, and what is left when a GPU's memory is too small."""

from __future__ import annotations

import json

import pytest
import torch

from megatron_bar.models.config import ModelConfig
from megatron_bar.recipe.fields import faults
from megatron_bar.recipe.training import Profile, Training
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.work import out_of_memory
from megatron_bar.stages.work.out_of_memory import explain_out_of_memory
from megatron_bar.training.loop import TrainingRun
from megatron_bar.training.model_run import ModelRun
from tests.distributed.stages import rows, training

CONFIG = ModelConfig(331, 48, 80, 2, 6, 2, max_position_embeddings=64)


def _steps_in(trace) -> int:
    """How often the loss was computed."""
    events = json.loads(trace.read_text())["traceEvents"]
    return sum(event["name"] == "_LinearLoss" for event in events)


def test_a_stage_traces_the_steps_that_it_names(tmp_path, capsys):
    settings = training(
        ("head",), steps=4, global_batch_size=2, micro_batch_size=2, profile=Profile([2, 3])
    )
    with process_groups(Layout()):
        run = ModelRun(CONFIG, None, tmp_path, Layout(), 0, "sft")
        TrainingRun(run, settings, rows(), 0).run()
    assert _steps_in(tmp_path / "profile" / "trace-0.json") == 2
    assert f"sft: traces of steps are in {tmp_path / 'profile'}" in capsys.readouterr().out.replace(
        "\n", " "
    )


@pytest.mark.parametrize("steps", [[3], [0, 2], [4, 3]])
def test_steps_that_cannot_be(steps):
    assert "is not a first and a last step" in faults(Profile(steps), "sft: profile.")[0]


class _Gpu:
    total_memory = 80 << 30


def test_too_little_memory_is_a_line_that_says_what_would_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(
        out_of_memory, "write_memory_snapshot", lambda folder: folder / "memory-0.pickle"
    )
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: _Gpu())
    model = ModelConfig(100_352, 4096, 11008, 32, 32, 32).with_experts(2)
    settings = Training(trainable=["expert.1", "router.1"], dtype="bfloat16", micro_batch_size=2)
    run = ModelRun(model, None, tmp_path, Layout(8), 0, "math/midtrain")
    with pytest.raises(BarError) as raised, explain_out_of_memory(run, settings):
        raise torch.OutOfMemoryError("CUDA out of memory")
    said = str(raised.value)
    assert "math/midtrain: the GPU's 80 GiB are too small" in said and "; try " in said
    assert str(tmp_path / "profile" / "memory-0.pickle") in said and "\n" not in said
