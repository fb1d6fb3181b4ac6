"""Products of frozen experts in FP8, for which a GPU takes about half of bf16's time.

A frozen weight has two products, `x W^T` and the gradient of its input, `g W`, and no third. Both
factors are rounded to e4m3, sums and results are as they were: the product's own and bf16. Each row
of what comes in has a scale of its own, found as it comes (no value goes to the host), so tokens of
any size are rounded alike; gradients, too, are nearer to the truth so than in e5m2 with its wider
range. The weight is rounded once, with a scale for each of its outputs, in two copies: the products
sum over different sides of it, and a GPU of compute capability 8.9 or 9.0 wants that side to lie
closely in memory. The bf16 weight stays as it is, for checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_bar.runtime.fusing import fused

MULTIPLE_OF = 16  # the sides of a product on a GPU
OLDEST = (8, 9)  # compute capability of GPUs with such products
_TYPE = torch.float8_e4m3fn
_LARGEST = torch.finfo(_TYPE).max
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # of a row of zeros
_MARK = "in_fp8"


@dataclass(frozen=True)
class _Copy:
    """A matrix [R, K] whose product sums over K, and a scale [R, 1] for each row."""

    values_RK: torch.Tensor
    scales_R1: torch.Tensor

    def of(self, x_TK: torch.Tensor) -> torch.Tensor:
        """`x_TK -> y_TR`, in the type of `x_TK`."""
        values_TK, scales_T1 = rounded(x_TK)
        return torch._scaled_mm(
            values_TK,
            self.values_RK.t(),
            scale_a=scales_T1,
            scale_b=self.scales_R1.t(),
            out_dtype=x_TK.dtype,
            # An H100 then adds in 22 bits, which is off by less than FP8 is (docs/results/fp8.md).
            # In fp32 products by rows were found so slow that others went round them (ao 2184).
            use_fast_accum=True,
        )


@fused
def rounded(x_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`x_TK` in FP8, and the fp32 scale [T, 1] that each row has to be multiplied by.

    A row with what is no finite number becomes no number as a whole.
    """
    scales_T1 = x_TK.abs().amax(-1, keepdim=True).float() / _LARGEST
    scales_T1 = scales_T1.clamp(min=_SMALLEST_SCALE)
    return (x_TK / scales_T1).to(_TYPE).contiguous(), scales_T1


def multiply_in_fp8(weight_OI: torch.nn.Parameter) -> None:
    """Have `product` and `input_gradient` of a weight, which is final, go by FP8 from now on.

    Both copies together take as many bytes as a bf16 weight, and a scale for each row and column.
    """
    with torch.no_grad():
        copies = tuple(_Copy(*rounded(side.contiguous())) for side in (weight_OI, weight_OI.t()))
    setattr(weight_OI, _MARK, copies)


def copied_bytes(weight_OI: torch.Tensor) -> int:
    """Bytes of what a weight has in FP8 beside itself."""
    copies: tuple[_Copy, ...] = getattr(weight_OI, _MARK, ())
    return sum(copy.values_RK.nbytes + copy.scales_R1.nbytes for copy in copies)


def product(x_TI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """`x W^T`."""
    if not hasattr(weight_OI, _MARK):
        return x_TI @ weight_OI.t()
    by_outputs, _ = getattr(weight_OI, _MARK)
    return by_outputs.of(x_TI)


def input_gradient(
    grad_TO: torch.Tensor, weight_OI: torch.Tensor, sum_TI: torch.Tensor | None = None
) -> torch.Tensor:
    """`grad W`, the gradient of a product's input, added to `sum_TI` in place if there is one."""
    if not hasattr(weight_OI, _MARK):
        return grad_TO @ weight_OI if sum_TI is None else sum_TI.addmm_(grad_TO, weight_OI)
    _, by_inputs = getattr(weight_OI, _MARK)
    grad_TI = by_inputs.of(grad_TO)
    return grad_TI if sum_TI is None else sum_TI.add_(grad_TI)
