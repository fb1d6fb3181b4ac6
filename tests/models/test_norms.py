"""RMSNorm's value and gradients, against autograd through its formula."""

from __future__ import annotations

import pytest
import torch

from megatron_bar.models.norms import _normed

EPS, SHAPE = 1e-3, (5, 3, 7)


def plain(x, weight):
    x_fp32 = x.float()
    scale = torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + EPS)
    return (weight * (x_fp32 * scale)).to(x.dtype)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("open_", [(True, True), (True, False), (False, True)])
def test_equals_the_formula_whatever_is_frozen(open_, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    weight = torch.randn(SHAPE[-1], generator=generator)
    ours, theirs = ([x.to(dtype).clone(), weight.to(dtype).clone()] for _ in range(2))
    for inputs in (ours, theirs):
        for tensor, flag in zip(inputs, open_):
            tensor.requires_grad_(flag)
    value = _normed(*ours, EPS, SHAPE[-1])
    expected = plain(*theirs)
    assert value.dtype is dtype and torch.allclose(value, expected, atol=tolerance)
    value.backward(grad.to(dtype))
    expected.backward(grad.to(dtype))
    for a, b, flag in zip(ours, theirs, open_):
        assert (a.grad is not None) == flag
        assert not flag or torch.allclose(a.grad, b.grad, atol=tolerance, rtol=tolerance)
