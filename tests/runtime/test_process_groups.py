"""How groups of processes are made on GPUs, seen without one: what torch and Megatron are asked."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import random

from megatron_bar.runtime import cpu
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout


@pytest.fixture
def asked(monkeypatch) -> dict[str, dict]:
    """What is asked of torch and Megatron by rank 3 of 4, of which 2 are on this machine."""
    cpu.install()  # before the machine is said to have GPUs
    found: dict[str, dict] = {"destroyed": {}}
    for name, value in {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MEGATRON_BAR_HANG_MINUTES": "7",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: found.update(current=device))
    monkeypatch.setattr(dist, "init_process_group", lambda **given: found.update(world=given))
    monkeypatch.setattr(dist, "get_backend", lambda: found["world"]["backend"])
    monkeypatch.setattr(
        dist, "destroy_process_group", lambda: found["destroyed"].update(world=True)
    )
    monkeypatch.setattr(
        parallel_state, "initialize_model_parallel", lambda **given: found.update(groups=given)
    )
    monkeypatch.setattr(random, "model_parallel_cuda_manual_seed", lambda *args, **kwargs: None)
    return found


def test_each_rank_has_its_gpu_and_all_groups_wait_as_long(asked):
    with process_groups(Layout(4)):
        assert asked["current"] == torch.device("cuda", 1)
        assert asked["world"]["backend"] == "nccl"
        assert asked["world"]["device_id"] == torch.device("cuda", 1)
        assert asked["groups"]["create_gloo_process_groups"] is False
        minutes = asked["groups"]["distributed_timeout_minutes"]
        assert asked["world"]["timeout"] == timedelta(minutes=minutes) == timedelta(minutes=70)
    assert asked["destroyed"]


def test_a_rank_that_fails_on_a_gpu_does_not_wait_for_the_others(asked):
    with pytest.raises(ZeroDivisionError), process_groups(Layout(4)):
        raise ZeroDivisionError
    assert not asked["destroyed"]


def test_more_ranks_than_gpus_are_refused_in_a_rank_too(asked, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with (
        pytest.raises(BarError, match="4 processes need a GPU each, and 2 can be seen here"),
        process_groups(Layout(4)),
    ):
        pass
    monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with process_groups(Layout(4)):
        assert asked["current"] == torch.device("cuda", 0)


@pytest.mark.slow
def test_fp32_is_not_tf32_where_an_image_allows_that():
    """NVIDIA's images set the variable, which torch reads when it is imported."""
    code = (
        "import os, torch\n"
        "print(torch.get_float32_matmul_precision())\n"
        "from megatron_bar.runtime.distributed import process_groups\n"
        "from megatron_bar.runtime.layout import Layout\n"
        "with process_groups(Layout()):\n"
        "    print(torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32,\n"
        "          torch.backends.cudnn.allow_tf32, os.environ['NVIDIA_TF32_OVERRIDE'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1", "NVIDIA_TF32_OVERRIDE": "1"},
    )
    assert done.stdout.split() == ["high", "highest", "False", "False", "0"]
