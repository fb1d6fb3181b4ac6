"""Gradients of weights that the product which makes them adds to their buffer.

Otherwise a product writes a gradient in the compute type, and another kernel reads it and adds it
to the fp32 buffer: 10 bytes of traffic a number in bf16, after a product that has its own sums in
fp32 anyway. Megatron's and Transformer Engine's own way of this is compiled code for their linear
layers, and the experts, which hold most of what trains, don't use those. torch's product does the
same: in fp32 on any device, and from 16 bits into fp32 on a GPU.
"""

from __future__ import annotations

import torch
from packaging.version import Version

_MARK = "adds_gradient_in_product"
_ADDED = "grad_added_to_main_grad"  # Megatron adds no gradient of such a weight itself


def can_add(weight: torch.Tensor) -> bool:
    """Whether a product of this type and device can add to an fp32 buffer."""
    if weight.dtype is torch.float32:
        return True
    # Before, what is added to had to be of the type of what is multiplied (pytorch 167931).
    return weight.is_cuda and Version(torch.__version__) >= Version("2.10")


def add_in_product(weight: torch.nn.Parameter) -> None:
    """Have `weight_gradient` add to `weight.main_grad`, Megatron's buffer, from now on."""
    setattr(weight, _MARK, True)


def weight_gradient(
    weight: torch.Tensor, grad_TO: torch.Tensor, x_TI: torch.Tensor
) -> torch.Tensor:
    """`grad^T x`, the gradient of a weight [O, I], as autograd is to have it.

    Of a weight that is marked it has been added to the buffer, and autograd gets a tensor without
    content: what comes after the backward pass of a weight waits for one.
    """
    if not getattr(weight, _MARK, False):
        return grad_TO.t() @ x_TI
    buffer_OI: torch.Tensor = weight.main_grad  # type: ignore[attr-defined]  # Megatron's
    if x_TI.dtype is buffer_OI.dtype:
        buffer_OI.addmm_(grad_TO.t(), x_TI)
    else:
        torch.addmm(buffer_OI, grad_TO.t(), x_TI, out_dtype=buffer_OI.dtype, out=buffer_OI)
    setattr(weight, _ADDED, True)
    return torch.empty_like(weight)
