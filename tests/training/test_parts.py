"""What a stage says of what computes it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.recipe.training import Training
from megatron_bar.runtime import devices
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.groups import freeze
from megatron_bar.training.optimizer import build_optimizer, wrap
from megatron_bar.training.parts import parts_in_use

SMALL = ModelConfig(96, 32, 48, 1, 4, 2)


def test_a_cpu_computes_with_torch_alone():
    with process_groups(Layout()):
        model = build_model(SMALL, Layout(), torch.bfloat16)
        wrapped = wrap(model, Training())
        assert parts_in_use(model, build_optimizer(wrapped, Training())) == (
            "attention masks (the device is no GPU), products torch's, kernels plain torch, "
            "AdamW torch's, fused; no Transformer Engine, as there is no GPU"
        )


def test_it_says_where_frozen_experts_multiply_in_fp8():
    experts, training = SMALL.with_experts(2), Training(fp8_frozen_experts=True)
    with process_groups(Layout()):
        model = build_model(experts, Layout(), torch.bfloat16)
        freeze(model, experts, ["expert.1"])
        optimizer = build_optimizer(wrap(model, training), training)
        assert "products torch's (of frozen experts in FP8), " in parts_in_use(model, optimizer)


def _why(dtype: str, *path: str) -> str:
    """`why_no_transformer_engine` on a machine that says that it has a GPU."""
    code = (
        f"import sys, torch; sys.path[:0] = {list(path)!r}\n"
        "torch.cuda.is_available = lambda: True\n"
        "from megatron_bar.runtime.devices import why_no_transformer_engine\n"
        f"print(why_no_transformer_engine(torch.{dtype}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fails, error", [("__init__", "OSError"), ("pytorch/__init__", "ImportError")], ids=str
)
def test_transformer_engine_that_cannot_be_loaded_is_told(fails, error, tmp_path):
    """Megatron-Core would end with a traceback, or go on without a word."""
    for name in ("__init__", "pytorch/__init__"):
        file = tmp_path / "transformer_engine" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"raise {error}('undefined symbol:\\n cublasLt')" if name == fails else "")
    assert _why("bfloat16", str(tmp_path)) == "it can't be loaded: undefined symbol: cublasLt"


@pytest.mark.slow
def test_transformer_engine_that_is_absent_is_told():
    assert _why("bfloat16") == "it isn't installed"


def test_float32_goes_without_transformer_engine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "transformer_engine_runs", lambda: True)
    assert devices.why_no_transformer_engine(torch.bfloat16) is None
    why = devices.why_no_transformer_engine(torch.float32)
    assert why == "it rounds products of float32 to TF32"
