"""vLLM's worker, taught to take new weights from a folder (`--worker-extension-cls`).

Its own `reload_weights` ruins a mixture of experts on a CPU (0.32): experts are packed for the CPU
when they are first loaded, and on a reload unpacked ones are written where packed ones are read.
"""

from __future__ import annotations

from typing import Protocol

import torch


class _Runner(Protocol):
    def get_model(self) -> torch.nn.Module: ...


class _Worker(Protocol):
    """vLLM's worker, which gets the methods."""

    device: torch.device
    model_runner: _Runner

    def reload_weights(self, *, weights_path: str) -> None: ...


class TakesWeights:
    """Methods that `POST /collective_rpc` can call."""

    def take_weights(self: _Worker, folder: str) -> None:
        """Load the weights in `folder`, a model of the same shapes."""
        if self.device.type == "cpu":
            for module in self.model_runner.get_model().modules():
                method = getattr(module, "quant_method", None)
                if method is not None and getattr(method, "moe_kernel", None) is not None:
                    method.moe_kernel = None  # the reload sets it up anew, which packs
        self.reload_weights(weights_path=folder)
