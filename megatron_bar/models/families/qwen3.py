"""Qwen3, dense and with experts.

Sizes are as in the config.json of Qwen's repositories on the Hugging Face hub, by several published
surveys of them; the files themselves were not seen.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_bar.models.config import ModelConfig
from megatron_bar.models.families.family import LAYER, LLAMA_TENSORS, Family, HfClass
from megatron_bar.models.families.keys import read_experts, refuse_sliding, whole, written_experts
from megatron_bar.models.families.rope_keys import unscaled_theta

# With use_sliding_window false, as in all of Qwen3, a sliding_window has no effect.
_ONLY = {"use_sliding_window": False}
_DEFAULTS = {"max_position_embeddings": 32_768, "rms_norm_eps": 1e-6}


def _read(config: dict[str, Any]) -> dict[str, Any]:
    refuse_sliding({"layer_types": config.get("layer_types")})
    fields = {
        "norm_placement": "before",
        "qk_norm": "per_head",
        "rope_theta": unscaled_theta(config, 10_000.0),
    }
    if "head_dim" in config:
        fields["kv_channels"] = whole(config, "head_dim")
    return fields


def _write(model: ModelConfig) -> dict[str, Any]:
    return {"head_dim": model.head_dim, "use_sliding_window": False}


def _read_experts(config: dict[str, Any]) -> dict[str, Any]:
    width = {"ffn_hidden_size": whole(config, "moe_intermediate_size")}
    return _read(config) | width | read_experts(config)


def _write_experts(model: ModelConfig) -> dict[str, Any]:
    return (
        _write(model)
        | written_experts(model)
        | {
            "moe_intermediate_size": model.ffn_hidden_size,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    )


def _size(
    hidden: int, ffn: int, layers: int, heads: int, tied: bool = False, **fields: Any
) -> ModelConfig:
    size = ModelConfig(
        vocab_size=151_936,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        kv_channels=128,
        tied_embeddings=tied,
        max_position_embeddings=40_960,
        rope_theta=1e6,
        norm_placement="before",
        qk_norm="per_head",
        family="qwen3",
    )
    return dataclasses.replace(size, **fields)


FAMILY = Family(
    name="qwen3",
    title="Qwen3",
    dense=HfClass(
        "qwen3",
        "Qwen3ForCausalLM",
        _read,
        _write,
        defaults=_DEFAULTS | {"head_dim": 128},
        only=_ONLY,
    ),
    mixture=HfClass(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        _read_experts,
        _write_experts,
        defaults=_DEFAULTS,
        only=_ONLY | {"decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
    tensors=LLAMA_TENSORS
    | {
        "decoder.layers.self_attention.q_layernorm.weight": (LAYER + "self_attn.q_norm.weight",),
        "decoder.layers.self_attention.k_layernorm.weight": (LAYER + "self_attn.k_norm.weight",),
    },
    presets={
        "qwen3-0.6b": _size(1024, 3072, 28, 16, tied=True),
        "qwen3-1.7b": _size(2048, 6144, 28, 16, tied=True),
        "qwen3-4b": _size(2560, 9728, 36, 32, tied=True),
        "qwen3-4b-2507": _size(
            2560, 9728, 36, 32, tied=True, max_position_embeddings=262_144, rope_theta=5e6
        ),
        "qwen3-8b": _size(4096, 12288, 36, 32),
        "qwen3-14b": _size(5120, 17408, 40, 40),
        "qwen3-32b": _size(5120, 25600, 64, 64),
        "toy-qwen3": _size(
            128,
            256,
            4,
            4,
            tied=True,
            vocab_size=512,
            num_kv_heads=2,
            kv_channels=48,
            max_position_embeddings=512,
        ),
    },
    published={
        "Qwen3-0.6B": "qwen3-0.6b",
        "Qwen3-1.7B": "qwen3-1.7b",
        "Qwen3-4B": "qwen3-4b",
        "Qwen3-4B-Instruct-2507": "qwen3-4b-2507",
        "Qwen3-4B-Thinking-2507": "qwen3-4b-2507",
        "Qwen3-8B": "qwen3-8b",
        "Qwen3-14B": "qwen3-14b",
        "Qwen3-32B": "qwen3-32b",
    },
)
