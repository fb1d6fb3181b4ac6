"""The loss over a large vocabulary: ours, Megatron's and torch's, forward and backward.

    python -m benchmarks.loss [--tokens 256] [--vocabulary 100278] [--clock cpu]

One rank, bf16 logits, `vocabulary` padded to a multiple of 128 as a model's is. Megatron's
vocab_parallel_cross_entropy knows no padding, so the padding's logits are set to a large negative
number first, for which it needs a copy. Memory is what each allocates at its peak beyond the logits
and their gradient.
"""

from __future__ import annotations

import argparse

import torch
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from rich.table import Table

from benchmarks.timing import clock_named, device, machine, medians
from megatron_bar.models.loss import vocabulary_loss
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=100_278)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    padded = -(-args.vocabulary // 128) * 128
    logits_SBV = torch.randn(args.tokens, 1, padded, generator=generator).bfloat16()
    labels_SB = torch.randint(args.vocabulary, (args.tokens, 1), generator=generator)
    with process_groups(Layout()):
        logits_SBV, labels_SB = logits_SBV.to(device()), labels_SB.to(device())
        group = torch.distributed.group.WORLD
        losses = {
            "ours": lambda logits: vocabulary_loss(logits, labels_SB, args.vocabulary, group),
            "Megatron's": lambda logits: _megatron(logits, labels_SB, args.vocabulary),
            "torch's, one rank only": lambda logits: _torch(logits, labels_SB, args.vocabulary),
        }
        grads: dict[str, torch.Tensor] = {}

        def step(name: str) -> None:
            logits = logits_SBV.clone().requires_grad_()
            losses[name](logits).sum().backward()
            grads[name] = logits.grad

        seconds = medians({name: lambda name=name: step(name) for name in losses},
                          args.repetitions, clock_named(args.clock))
        exact = logits_SBV.double()[..., :args.vocabulary].softmax(-1)
        exact.scatter_add_(-1, labels_SB.unsqueeze(-1), torch.full_like(exact[..., :1], -1.0))
        console.print(machine(1, args.clock))
        table = Table("", "ms a step", "ours is faster by", "largest error of a gradient", box=None)
        for name in losses:
            error = (grads[name][..., :args.vocabulary].double() - exact).abs().max()
            table.add_row(name, f"{1000 * seconds[name]:.0f}",
                          f"{seconds[name] / seconds['ours']:.2f}", f"{error:.1e}")
        console.print(table)


if __name__ == "__main__":
    main()
