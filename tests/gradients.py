"""Gradients of one batch, ours and transformers', and by parameter group how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from megatron_bar.checkpoints.model_io import load_model, stacked_gradients
from megatron_bar.checkpoints.names import slots
from megatron_bar.data.batch import Batch
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.optimizer import wrap
from megatron_bar.training.step import forward_backward
from tests.models_hf import reference

Gradients = Mapping[str, torch.Tensor]  # by Hugging Face's names, fp32, on the CPU


def of_transformers(
    model: PreTrainedModel, batch: Batch, device: torch.device | str = "cpu"
) -> tuple[float, Gradients]:
    """The loss too. The model stays on `device`."""
    there = {name: tensor.to(device) for name, tensor in batch.tensors().items()}
    _, loss, gradients = reference(model.to(device), batch.with_tensors(there))
    return loss, {name: gradient.float().cpu() for name, gradient in gradients.items()}


def of_ours(checkpoint: Path, batch: Batch, dtype: torch.dtype) -> tuple[float, Gradients]:
    """As a stage computes them in one process. Called inside `process_groups`."""
    config = ModelConfig.load(checkpoint)
    model = build_model(config, Layout(), dtype)
    load_model(model, checkpoint)
    wrapped = wrap(model, Training(distributed_optimizer=False))
    wrapped.train()
    loss = forward_backward(wrapped, [batch]).loss
    for parameter in model.parameters():
        parameter.data = parameter.main_grad.clone()
        parameter.grad = parameter.data
    stacked = stacked_gradients(model)
    return loss, {
        name: gradient
        for slot in slots(config)
        for name, gradient in zip(slot.hf_names, slot.to_hf(stacked[slot.key][slot.index]))
    }


def distances(checkpoint: Path, ours: Gradients, exact: Gradients) -> dict[str, float]:
    """By parameter group: the norm of the difference over that of the exact gradients."""
    sums: dict[str, list[float]] = {}
    for slot in slots(ModelConfig.load(checkpoint)):
        of_group = sums.setdefault(slot.name.group, [0.0, 0.0])
        for name in slot.hf_names:
            of_group[0] += (ours[name] - exact[name]).square().sum().item()
            of_group[1] += exact[name].square().sum().item()
    return {group: (off / whole) ** 0.5 for group, (off, whole) in sums.items()}
