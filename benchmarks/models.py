"""Hugging Face folders of dense OLMo-2 models, of any size, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from megatron_bar.checkpoints.hf import hf_config
from megatron_bar.checkpoints.hf_weights import INDEX
from megatron_bar.checkpoints.names import slots
from megatron_bar.models.config import ModelConfig

_LAYER_BYTES = 2 * (4 * 2048**2 + 3 * 2048 * 8192)
_POOL = 2**26  # numbers; every tensor is a window of them


def model_of_size(gib: float) -> ModelConfig:
    """OLMo-2 1B's width with a small vocabulary and as many layers as make `gib` GiB in bf16."""
    vocabulary = 16384
    layers = round((gib * 2**30 - 4 * vocabulary * 2048) / _LAYER_BYTES)
    return ModelConfig(
        vocab_size=vocabulary,
        hidden_size=2048,
        ffn_hidden_size=8192,
        num_layers=max(layers, 1),
        num_heads=16,
        num_kv_heads=16,
    )


def write_hf_folder(folder: Path, model: ModelConfig, seed: int = 0) -> None:
    """One file a layer or so, in bf16."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    pool = (torch.randn(_POOL, generator=generator) * 0.02).bfloat16()
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for number, slot in enumerate(slots(model)):
        file = f"layer-{slot.index[0] if slot.index else 'none'}.safetensors"
        for name, shape in zip(slot.hf_names, slot.hf_shapes):
            count = torch.Size(shape).numel()
            start = (number * 7919) % (_POOL - count + 1)
            shards.setdefault(file, {})[name] = (file, start, count, shape)
    for file, tensors in shards.items():
        save_file(
            {
                name: pool[start : start + count].clone().reshape(shape)
                for name, (_, start, count, shape) in tensors.items()
            },
            folder / file,
            metadata={"format": "pt"},
        )
    (folder / INDEX).write_text(
        json.dumps(
            {
                "metadata": {},
                "weight_map": {n: file for file, t in shards.items() for n in t},
            }
        )
    )
    (folder / "config.json").write_text(json.dumps(hf_config(model, torch.bfloat16, {})))
