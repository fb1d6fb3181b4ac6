"""OLMo-2, and FlexOlmo, which is OLMo-2 with experts.

Sizes of 7B (1124), 13B (1124) and 32B (0325) are as in the config.json of allenai's repositories on
the Hugging Face hub; 1B (0425) is read from a fine-tune's config.json and from OLMo-core's
olmo2_1B_v2. FlexOlmo 7x7B is `PRESETS["olmo2-7b"].with_experts(7, 5)`, BAR's 5x7B
`.with_experts(5)`.
"""

from __future__ import annotations

from typing import Any

from megatron_bar.models.config import ModelConfig
from megatron_bar.models.families.family import LAYER, LLAMA_TENSORS, Family, HfClass
from megatron_bar.models.families.keys import read_experts, refuse_sliding, whole, written_experts
from megatron_bar.models.families.rope_keys import unscaled_theta
from megatron_bar.runtime.errors import BarError

_VOCAB = 100_352
# No OLMo has it otherwise.
ONLY = {"tie_word_embeddings": False}
# A norm follows each sub-layer.
TENSORS = LLAMA_TENSORS | {
    "decoder.layers.self_attention.q_norm.weight": (LAYER + "self_attn.q_norm.weight",),
    "decoder.layers.self_attention.k_norm.weight": (LAYER + "self_attn.k_norm.weight",),
    "decoder.layers.self_attn_bda.weight": (LAYER + "post_attention_layernorm.weight",),
    "decoder.layers.mlp_bda.weight": (LAYER + "post_feedforward_layernorm.weight",),
}


def refuse_head_dim(config: dict[str, Any]) -> None:
    """Raises BarError unless heads divide the hidden width, as in all of OLMo."""
    hidden, heads = (whole(config, key) for key in ("hidden_size", "num_attention_heads"))
    if "head_dim" in config and whole(config, "head_dim") * heads != hidden:
        raise BarError(f"head_dim {config['head_dim']} is not hidden_size / num_attention_heads")


def _read(config: dict[str, Any], theta: float) -> dict[str, Any]:
    refuse_head_dim(config)
    refuse_sliding(config)
    return {"rope_theta": unscaled_theta(config, theta)}


FAMILY = Family(
    name="olmo2",
    title="OLMo-2",
    dense=HfClass(
        "olmo2",
        "Olmo2ForCausalLM",
        read=lambda config: _read(config, theta=10_000.0),
        write=lambda model: {},
        defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
        only=ONLY,
    ),
    mixture=HfClass(
        "flex_olmo",
        "FlexOlmoForCausalLM",
        read=lambda config: _read(config, theta=500_000.0) | read_experts(config),
        write=written_experts,
        defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-6},
        only=ONLY,
    ),
    tensors=TENSORS,
    presets={
        "olmo2-1b": ModelConfig(_VOCAB, 2048, 8192, 16, 16, 16),
        "olmo2-7b": ModelConfig(_VOCAB, 4096, 11008, 32, 32, 32),
        "olmo2-13b": ModelConfig(_VOCAB, 5120, 13824, 40, 40, 40),
        "olmo2-32b": ModelConfig(_VOCAB, 5120, 27648, 64, 40, 8),
        "toy": ModelConfig(512, 128, 256, 4, 4, 2, max_position_embeddings=512),
    },
    published={
        "OLMo-2-0425-1B": "olmo2-1b",
        "OLMo-2-1124-7B": "olmo2-7b",
        "OLMo-2-1124-13B": "olmo2-13b",
        "OLMo-2-0325-32B": "olmo2-32b",
        "BAR-7B": "olmo2-7b",
    },
)
