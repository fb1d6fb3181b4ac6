"""What a resumed optimizer knows lies where its parameters do."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from megatron_bar.training.optimizer_state import restore


def test_the_count_of_steps_is_on_the_parameters_device():
    """torch's fused AdamW refuses it elsewhere. `meta` plays the GPU."""
    parameter = torch.nn.Parameter(torch.empty(3, device="meta"))
    optimizer = torch.optim.AdamW([parameter])
    part = SimpleNamespace(optimizer=optimizer)
    restore(part, {}, {}, steps=7)
    assert optimizer.state[parameter]["step"].device == parameter.device
