"""Products in FP8 on a GPU, against those of the rounded factors in fp32."""

from __future__ import annotations

import pytest
import torch

from megatron_bar.models.fp8 import input_gradient, multiply_in_fp8, product, rounded

# Of a 7B model's FFN, from the longest sums to the shortest; a CPU tries narrower ones.
WIDE, NARROW = (22_016, 4096), (352, 64)
# bf16 rounds by up to 2^-9, sums in 22 bits by about 1 % of the longest (docs/gpu.md).
AT_MOST = 0.025


def _back(x_TK: torch.Tensor) -> torch.Tensor:
    values_TK, scales_T1 = rounded(x_TK)
    return values_TK.float() * scales_T1


@pytest.mark.parametrize("tokens", [1, 77, 1024])
def test_products_are_those_of_the_rounded_factors(tokens, device):
    outputs, inputs = NARROW if device.type == "cpu" else WIDE
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, torch.bfloat16)

    weight_OI = torch.nn.Parameter(0.02 * random(outputs, inputs), requires_grad=False)
    multiply_in_fp8(weight_OI)
    x_TI, grad_TO = random(tokens, inputs), random(tokens, outputs)
    for found, expected in (
        (product(x_TI, weight_OI), _back(x_TI) @ _back(weight_OI).t()),
        (input_gradient(grad_TO, weight_OI), _back(grad_TO) @ _back(weight_OI.t()).t()),
    ):
        assert (found - expected).norm() / expected.norm() < AT_MOST


def test_nothing_goes_to_the_host(device):
    if device.type == "cpu":
        pytest.skip("a CPU is the host")
    weight_OI = torch.nn.Parameter(torch.ones(64, 64, device=device, dtype=torch.bfloat16))
    multiply_in_fp8(weight_OI)
    product(weight_OI.detach(), weight_OI)  # what is compiled, is compiled now
    torch.cuda.set_sync_debug_mode("error")
    try:
        product(weight_OI.detach(), weight_OI)
    finally:
        torch.cuda.set_sync_debug_mode("default")
