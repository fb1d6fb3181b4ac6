"""What torch.compile makes of the pure functions, against the functions themselves.

Compiled for the CPU, which is slow to compile: one function of each kind, of the smallest shapes.
tests/gpu compiles all of them.
"""

from __future__ import annotations

import shutil

import pytest
import torch

from megatron_bar.models import all_experts, fp8, norms
from megatron_bar.runtime import fusing

WIDTH, FFN, EXPERTS = 16, 8, 2


@pytest.fixture
def compiled(monkeypatch):
    """Whether functions are compiled, to be set."""
    if shutil.which("g++") is None:
        pytest.skip("torch.compile wants a C++ compiler")
    monkeypatch.setattr(fusing, "_failures", [])

    def set_to(on: bool) -> None:
        monkeypatch.setattr(fusing, "_asked_for", lambda: "1" if on else "0")

    return set_to


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def gradients(function, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of a weighted sum of it."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    (y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum().backward()
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def normed_and_rotated(x_TW, weight_W):
    rotation = random(2, len(x_TW), 1, WIDTH // 8)
    return norms._normed(x_TW, weight_W, 1e-5, WIDTH, rotation=rotation)


def weighted_experts(x_TW, probs_Te, *weights):
    return all_experts._WeightedExperts.apply(x_TW, probs_Te, *weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    "function, widths",
    [
        (normed_and_rotated, [(WIDTH,)]),
        (weighted_experts, [None, *((2 * FFN, WIDTH), (WIDTH, FFN)) * EXPERTS]),
    ],
    ids=["norm and rotation", "experts"],
)
def test_compiled_is_as_it_is_written_for_any_number_of_tokens(function, widths, compiled):
    for tokens in (5, 7):
        inputs = [
            random(tokens, WIDTH),
            *(random(*(shape or (tokens, EXPERTS))) for shape in widths),
        ]
        compiled(False)
        expected = gradients(function, *inputs)
        compiled(True)
        for ours, theirs in zip(gradients(function, *inputs), expected):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert not fusing._failures and fusing.kernels_in_use() == "compiled"


def test_where_nothing_can_be_compiled_functions_run_as_they_are(compiled, monkeypatch, capsys):
    def fails(function, **options):
        def broken(*args):
            raise torch._dynamo.exc.TorchDynamoException("no compiler\nmore")

        return broken

    monkeypatch.setattr(torch, "compile", fails)
    compiled(True)
    doubled = fusing.fused(lambda x: 2 * x)
    for _ in range(2):
        assert doubled(torch.ones(3)).tolist() == [2, 2, 2]
    assert capsys.readouterr().out.count("kernels can't be compiled: no compiler") == 1
    assert "as compiling failed: no compiler" in fusing.kernels_in_use()


@pytest.mark.slow
def test_fp8_is_rounded_as_it_is_written(compiled):
    x_TK = random(9, WIDTH).bfloat16()
    x_TK[1] = 0
    compiled(False)
    expected = fp8.rounded(x_TK)
    compiled(True)
    for ours, theirs in zip(fp8.rounded(x_TK), expected):
        assert torch.equal(ours.float(), theirs.float())
    assert not fusing._failures
