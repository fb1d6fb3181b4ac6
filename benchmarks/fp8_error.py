"""How far products in FP8 are from exact ones, by how factors are rounded and sums are added.

    python -m benchmarks.fp8_error

Factors are random numbers of several kinds, rounded and multiplied in fp32: the error is that of
rounding alone, as a share of a token's result, in the mean over tokens. `rows` is what frozen
experts do: a scale for each token and each output of the weight, e4m3. Then the error of adding up
in 22 bits, as the products of an H100 do that are fast, worked out by cutting bits off each sum of
32 products.
"""

from __future__ import annotations

import torch
from rich.table import Table

from megatron_bar.runtime.console import print_wide

TOKENS, INNER, OUTPUTS = 512, 1024, 768
SUMS = (4096, 11_008, 22_016)  # of the products of a 7B model's FFN
_ADDED_AT_ONCE, _BITS = 32, 14  # of a sum in 22 bits: 1 for the sign, 8 for the exponent, 13 + 1
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def rounded(x_RK: torch.Tensor, rows: bool, dtype: torch.dtype) -> torch.Tensor:
    """`x_RK` to FP8 and back, with a scale for each row, or one for all."""
    largest = x_RK.abs().amax(-1, keepdim=True) if rows else x_RK.abs().amax()
    scale = largest / torch.finfo(dtype).max
    return (x_RK / scale).to(dtype).float() * scale


def error(found_TO: torch.Tensor, exact_TO: torch.Tensor) -> str:
    of_tokens_T = (found_TO - exact_TO).norm(dim=-1) / exact_TO.norm(dim=-1)
    return f"{float(of_tokens_T.mean()):.2%}"


def factors() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By kind, what comes in [T, K] and a weight [O, K]."""
    x_TK, weight_OK = torch.randn(TOKENS, INNER), 0.02 * torch.randn(OUTPUTS, INNER)
    channels_K = torch.ones(INNER)
    channels_K[:8] = 50
    return {
        "normal": (x_TK, weight_OK),
        "8 channels 50 times as large": (x_TK * channels_K, weight_OK),
        "tokens unlike (log-normal, 2)": (x_TK * torch.randn(TOKENS, 1).mul(2).exp(), weight_OK),
        "all unlike (log-normal, 1.5)": (x_TK * torch.randn(x_TK.shape).mul(1.5).exp(), weight_OK),
        "outputs unlike (log-normal, 1)": (x_TK, weight_OK * torch.randn(OUTPUTS, 1).exp()),
    }


def added_in_22_bits(x_TK: torch.Tensor, weight_OK: torch.Tensor) -> torch.Tensor:
    """`x W^T`, whose running sums lose what doesn't fit at each addition."""
    sum_TO = torch.zeros(len(x_TK), len(weight_OK))
    for part_Tk, part_Ok in zip(
        x_TK.split(_ADDED_AT_ONCE, 1), weight_OK.split(_ADDED_AT_ONCE, 1), strict=True
    ):
        mantissa_TO, exponent_TO = torch.frexp(sum_TO + part_Tk @ part_Ok.t())
        sum_TO = torch.ldexp(torch.trunc(mantissa_TO * 2**_BITS) / 2**_BITS, exponent_TO)
    return sum_TO


def main() -> None:
    torch.manual_seed(0)
    table = Table(
        "factors", "rows", "weight by one scale", "both", "what comes in e5m2", "bf16", box=None
    )
    for kind, (x_TK, weight_OK) in factors().items():
        exact_TO = x_TK @ weight_OK.t()
        found = [
            rounded(x_TK, x_rows, dtype) @ rounded(weight_OK, weight_rows, E4M3).t()
            for x_rows, weight_rows, dtype in (
                (True, True, E4M3),
                (True, False, E4M3),
                (False, False, E4M3),
                (True, True, E5M2),
            )
        ]
        found.append(x_TK.bfloat16().float() @ weight_OK.bfloat16().float().t())
        table.add_row(kind, *(error(each, exact_TO) for each in found))
    print_wide(table)
    table = Table("numbers in a sum", "rounding of factors", "sums in 22 bits", box=None)
    for inner in SUMS:
        x_TK, weight_OK = torch.randn(64, inner), torch.randn(64, inner)
        x8_TK, weight8_OK = rounded(x_TK, True, E4M3), rounded(weight_OK, True, E4M3)
        exact_TO = x8_TK @ weight8_OK.t()
        table.add_row(
            str(inner),
            error(exact_TO, x_TK @ weight_OK.t()),
            error(added_in_22_bits(x8_TK, weight8_OK), exact_TO),
        )
    print_wide(table)


if __name__ == "__main__":
    main()
