"""The list of accommodations is a promise: an entry more or less is noticed."""

import subprocess
import sys

import pytest
import torch

from megatron_bar.runtime import cpu

EXPECTED = {
    "current_device",
    "factories",
    "moves",
    "streams",
    "random_state",
    "split_sizes",
    "tensor_type_names",
    "memory",
    "gloo_threads",
    "no_te_gemm",
}
WITHOUT_TE = {"no_te_gemm"}


def test_the_list_is_complete_and_each_has_a_reason():
    assert {a.name for a in cpu.ACCOMMODATIONS} == EXPECTED
    assert {a.name for a in cpu.ACCOMMODATIONS if a.without_te} == WITHOUT_TE
    assert all(len(a.reason) > 30 for a in cpu.ACCOMMODATIONS)


def test_all_are_in_force_on_a_cpu():
    assert not torch.cuda.is_available()
    assert set(cpu.install()) == EXPECTED
    assert torch.cuda.current_device() == torch.device("cpu")
    assert torch.zeros(2, device="cuda").device.type == "cpu"


@pytest.mark.slow
def test_on_cuda_only_what_an_absent_transformer_engine_needs():
    # A process of its own: accommodations can't be taken back.
    code = (
        "import torch; torch.cuda.is_available = lambda: True\n"
        "from megatron_bar.runtime import cpu; before = torch.zeros\n"
        "print(sorted(cpu.install()), torch.zeros is before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{sorted(WITHOUT_TE)} True"


def test_random_states_stay_reproducible_over_a_fork():
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    cpu.install()
    draws = []
    for _ in range(2):
        tracker = CudaRNGStatesTracker()
        torch.manual_seed(1)
        tracker.add("model-parallel-rng", 7)
        outside = torch.rand(1)
        with tracker.fork():
            first = torch.rand(1)
        with tracker.fork():
            second = torch.rand(1)
        draws.append((outside, first, second, torch.rand(1)))
    assert draws[0] == draws[1]
    assert len({float(x) for x in draws[0]}) == 4
