"""The head and the loss over a large vocabulary, forward and backward: ours and others.

    python -m benchmarks.loss [--tokens 256] [--hidden 256] [--vocabulary 100278] [--frozen-head]
                              [--clock cpu]

One rank, in bf16 or `--dtype float32`; `vocabulary` is padded to a multiple of 128 as a model's is.
Megatron's vocab_parallel_cross_entropy knows no padding, so the padding's logits are set to a large
negative number first, for which it needs a copy.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable

import torch
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from rich.table import Table

from benchmarks.timing import clock_named, device, machine, medians
from megatron_bar.models.loss import linear_loss
from megatron_bar.runtime.console import console
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout


def _megatron(logits_SBV: torch.Tensor, labels_SB: torch.Tensor, vocabulary: int) -> torch.Tensor:
    columns_V = torch.arange(logits_SBV.shape[-1], device=logits_SBV.device)
    masked_SBV = logits_SBV.masked_fill(columns_V >= vocabulary, -1e30)
    return vocab_parallel_cross_entropy(masked_SBV, labels_SB)


def _torch(logits_SBV: torch.Tensor, labels_SB: torch.Tensor, vocabulary: int) -> torch.Tensor:
    real_TV = logits_SBV[..., :vocabulary].flatten(0, 1).float()
    return torch.nn.functional.cross_entropy(real_TV, labels_SB.flatten(), reduction="none")


def _whole(loss: Callable, *inputs: torch.Tensor, vocabulary: int) -> torch.Tensor:
    x_TH, head_VH, labels_T = inputs
    return loss((x_TH @ head_VH.t()).unsqueeze(1), labels_T.unsqueeze(1), vocabulary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=100_278)
    parser.add_argument("--frozen-head", action="store_true")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    padded = -(-args.vocabulary // 128) * 128
    x_TH, head_VH = (
        torch.randn(rows, args.hidden, generator=generator).to(getattr(torch, args.dtype))
        for rows in (args.tokens, padded)
    )
    labels_T = torch.randint(args.vocabulary, (args.tokens,), generator=generator)
    with process_groups(Layout()):
        x_TH, head_VH, labels_T = (tensor.to(device()) for tensor in (x_TH, head_VH, labels_T))
        group = torch.distributed.group.WORLD
        losses = {
            "ours": lambda *inputs: linear_loss(*inputs, args.vocabulary, group)[0],
            "Megatron's": functools.partial(_whole, _megatron, vocabulary=args.vocabulary),
            "torch's, one rank only": functools.partial(_whole, _torch, vocabulary=args.vocabulary),
        }
        grads: dict[str, torch.Tensor] = {}

        def step(name: str) -> None:
            x = x_TH.clone().requires_grad_()
            head = head_VH.clone().requires_grad_(not args.frozen_head)
            losses[name](x, head, labels_T).sum().backward()
            grads[name] = x.grad

        seconds = medians(
            {name: lambda name=name: step(name) for name in losses},
            args.repetitions,
            clock_named(args.clock),
        )
        exact = x_TH.double().requires_grad_()
        _whole(
            _torch, exact, head_VH.double(), labels_T, vocabulary=args.vocabulary
        ).sum().backward()
        console.print(machine(1, args.clock))
        table = Table("", "ms a step", "ours is faster by", "error of the gradient", box=None)
        for name in losses:
            error = (grads[name].double() - exact.grad).norm() / exact.grad.norm()
            table.add_row(
                name,
                f"{1000 * seconds[name]:.0f}",
                f"{seconds[name] / seconds['ours']:.2f}",
                f"{error:.1e}",
            )
        console.print(table)


if __name__ == "__main__":
    main()
