"""A family of models: its classes in transformers, its tensors' names, its sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.errors import BarError

# By key of a checkpoint, the tensors of a Hugging Face folder that it is made of, as most models
# since Llama call them. `{layer}` and `{expert}` are the axes by which the key stacks them.
LAYER = "model.layers.{layer}."
_EXPERT = LAYER + "mlp.experts.{expert}."
LLAMA_TENSORS: dict[str, tuple[str, ...]] = {
    "embedding.word_embeddings.weight": ("model.embed_tokens.weight",),
    "decoder.layers.self_attention.linear_qkv.weight": tuple(
        f"{LAYER}self_attn.{x}_proj.weight" for x in "qkv"
    ),
    "decoder.layers.self_attention.linear_proj.weight": (LAYER + "self_attn.o_proj.weight",),
    "decoder.layers.input_layernorm.weight": (LAYER + "input_layernorm.weight",),
    "decoder.layers.pre_mlp_layernorm.weight": (LAYER + "post_attention_layernorm.weight",),
    "decoder.layers.mlp.linear_fc1.weight": (
        LAYER + "mlp.gate_proj.weight",
        LAYER + "mlp.up_proj.weight",
    ),
    "decoder.layers.mlp.linear_fc2.weight": (LAYER + "mlp.down_proj.weight",),
    "decoder.layers.mlp.experts.experts.linear_fc1.weight": (
        _EXPERT + "gate_proj.weight",
        _EXPERT + "up_proj.weight",
    ),
    "decoder.layers.mlp.experts.experts.linear_fc2.weight": (_EXPERT + "down_proj.weight",),
    "decoder.layers.mlp.router.weight": (LAYER + "mlp.gate.weight",),
    "decoder.final_layernorm.weight": ("model.norm.weight",),
    "output_layer.weight": ("lm_head.weight",),
}


@dataclass(frozen=True)
class HfClass:
    """A class of transformers, and how the config.json of its models is read and written.

    `read` makes of a config.json the fields of ModelConfig beside the sizes that all classes call
    alike, `write` makes of a ModelConfig the keys that they don't share; both raise BarError for
    what isn't computed. `defaults` are transformers' values of what a config.json may leave out,
    `only` the one value that is computed of what would change the model.
    """

    model_type: str
    name: str
    read: Callable[[dict[str, Any]], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """Models that compute alike, with one FFN a layer or with experts.

    `name` is what model.json calls it, `title` what its authors do. `tensors` says by key of a
    checkpoint what a Hugging Face folder calls its tensors. `published` maps how the names of
    published checkpoints begin to their preset. `note` is for the model card.
    """

    name: str
    title: str
    dense: HfClass
    mixture: HfClass | None  # None: transformers has no class for the family with experts,
    no_mixture: str = ""  # for this reason
    tensors: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: LLAMA_TENSORS)
    presets: Mapping[str, ModelConfig] = field(default_factory=dict)
    published: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def classes(self) -> tuple[HfClass, ...]:
        return (self.dense,) if self.mixture is None else (self.dense, self.mixture)

    def hf_class(self, model: ModelConfig) -> HfClass:
        """transformers' class for `model`, which is of this family. Raises BarError without one."""
        if model.num_experts is None:
            return self.dense
        if self.mixture is None:
            raise BarError(
                f"Hugging Face has no class for {self.title} with experts "
                f"({self.no_mixture}); the model can't be exported and stays a "
                "checkpoint"
            )
        return self.mixture
