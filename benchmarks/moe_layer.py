"""One MoE layer with all experts active: Megatron's stock layer and ours, on the same weights.

    python -m benchmarks.moe_layer [--hidden 256 512 1024] [--experts 2 5] [--threads 1]

Forward and backward of a mid-training step, in which the last expert and its router row train and
the input has a gradient. Prints tokens/s of both, their ratio, and the bytes a token that each
keeps between forward and backward, weights aside.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from rich.table import Table

from benchmarks.timing import clock_named, device, machine, medians
from megatron_bar.models.all_experts import AllExperts, AllExpertsLayer, AllExpertsRouter
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import transformer_config
from megatron_bar.models.router import RowRouter
from megatron_bar.runtime.console import console
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout

TOKENS = 1024
PARTS = {
    "stock": (MoELayer, SequentialMLP, RowRouter),
    "ours": (AllExpertsLayer, AllExperts, AllExpertsRouter),
}


def layers(hidden: int, experts: int) -> dict[str, MoELayer]:
    """Both layers, with the same weights, of which the last expert's and its row train."""
    model = ModelConfig(512, hidden, hidden * 43 // 16, 1, 4, 2).with_experts(experts)
    config = transformer_config(model, Layout(), torch.float32)
    backend = LocalSpecProvider()
    linears = MLPSubmodules(
        linear_fc1=backend.column_parallel_linear(), linear_fc2=backend.row_parallel_linear()
    )
    built = {}
    for name, (layer, experts_class, router) in PARTS.items():
        built[name] = (
            layer(
                config,
                submodules=MoESubmodules(
                    experts=ModuleSpec(experts_class, submodules=linears), router=router
                ),
            )
            .to(device())
            .train()
        )
        last = (f"local_experts.{experts - 1}.", f"rows.{experts - 1}")
        for key, parameter in built[name].named_parameters():
            parameter.requires_grad_(any(part in key for part in last))
    built["ours"].load_state_dict(built["stock"].state_dict())
    return built


def step(layer: MoELayer, x_SBH: torch.Tensor) -> Callable[[], torch.Tensor]:
    def forward_backward() -> torch.Tensor:
        layer.zero_grad()
        x_SBH.grad = None
        y_SBH, _ = layer(x_SBH)
        y_SBH.sum().backward()
        return y_SBH.detach()

    return forward_backward


def kept_bytes(layer: MoELayer, x_SBH: torch.Tensor) -> int:
    """Bytes a token that the forward pass keeps for the backward pass, parameters aside."""
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x_SBH)
    weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    return sum(size for place, size in kept.items() if place not in weights) // TOKENS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--experts", type=int, nargs="+", default=[2, 5])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table(
        "hidden",
        "experts",
        "stock, tok/s",
        "ours, tok/s",
        "ours / stock",
        "stock keeps, B",
        "ours keeps, B",
        box=None,
        title=machine(options.threads, options.clock),
    )
    with process_groups(Layout()):
        for hidden in options.hidden:
            for experts in options.experts:
                built = layers(hidden, experts)
                x_SBH = torch.randn(TOKENS, 1, hidden, device=device(), requires_grad=True)
                steps = {name: step(layer, x_SBH) for name, layer in built.items()}
                assert torch.allclose(steps["stock"](), steps["ours"](), atol=1e-5)
                seconds = medians(steps, options.repetitions, clock_named(options.clock))
                table.add_row(
                    str(hidden),
                    str(experts),
                    *(f"{TOKENS / seconds[name]:,.0f}" for name in PARTS),
                    f"{seconds['stock'] / seconds['ours']:.2f}",
                    *(f"{kept_bytes(layer, x_SBH):,}" for layer in built.values()),
                )
    console.print(table)


if __name__ == "__main__":
    main()
