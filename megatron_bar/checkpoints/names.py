"""Slots of a checkpoint, and the Hugging Face tensors that they are made of and become.

Megatron-Core stacks layers: a checkpoint key holds `[L, ...]`, an expert's key `[L, E, ...]`. A
`Slot` is the slice of such a key that corresponds to a few Hugging Face tensors, and knows how to
turn one into the other. What these are called, the model's family tells.

Shape letters: V vocabulary, H hidden, L layers, E experts, F ffn, N heads, K kv heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from megatron_bar.models.config import ModelConfig
from megatron_bar.models.families import family_of

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fusion:
    """A fusion of several Hugging Face tensors into one Megatron tensor, and back.

    `join` gives pieces whose rows follow one another in the Megatron tensor, `split` those of each
    Hugging Face tensor: views, where they can be, so that a converter copies from file to file.
    """

    join: Callable[[ModelConfig, Sequence[torch.Tensor]], list[torch.Tensor]]
    split: Callable[[ModelConfig, torch.Tensor], list[list[torch.Tensor]]]


def _interleave_qkv(model: ModelConfig, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    # One group a kv head: its query heads, its key head, its value head.
    parts = [t.reshape(model.num_kv_heads, -1, t.shape[-1]) for t in tensors]
    return [part[group] for group in range(model.num_kv_heads) for part in parts]


def _split_qkv(model: ModelConfig, qkv: torch.Tensor) -> list[list[torch.Tensor]]:
    queries = model.num_heads // model.num_kv_heads
    rows = [count * model.head_dim for count in (queries, 1, 1)]
    groups = [group.split(rows) for group in qkv.chunk(model.num_kv_heads)]
    return [list(pieces) for pieces in zip(*groups)]


def _pad_vocabulary(model: ModelConfig, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    (weight,) = tensors
    missing_rows = model.padded_vocab_size(tensor=1) - weight.shape[0]
    return [weight, weight.new_zeros(missing_rows, weight.shape[1])]


SAME = Fusion(lambda model, tensors: list(tensors), lambda model, tensor: [[tensor]])
VOCAB = Fusion(_pad_vocabulary, lambda model, tensor: [[tensor[: model.vocab_size]]])
QKV = Fusion(_interleave_qkv, _split_qkv)
GATE_UP = Fusion(
    lambda model, tensors: list(tensors), lambda model, tensor: [[half] for half in tensor.chunk(2)]
)


@dataclass(frozen=True)
class Name:
    """A key of a checkpoint, and the `shapes` of the Hugging Face tensors in a slice of it.

    `group` is what stages freeze and unfreeze by; an expert's FFN and router row are groups of
    their own, named by its global id.
    """

    group: str
    key: str
    shapes: Callable[[ModelConfig], tuple[Shape, ...]]
    fusion: Fusion = SAME

    @property
    def has_layers(self) -> bool:
        return self.key.startswith(_LAYERS)

    @property
    def has_experts(self) -> bool:
        """Whether the experts are an axis of the key, as they are not of the router's."""
        return self.key.startswith(_EXPERTS)


def _output(model: ModelConfig) -> tuple[Shape, ...]:
    return ((model.hidden_size, model.num_heads * model.head_dim),)


def _hidden(model: ModelConfig) -> tuple[Shape, ...]:
    return ((model.hidden_size,),)


def _one_head(model: ModelConfig) -> tuple[Shape, ...]:
    return ((model.head_dim,),)


def _vocabulary(model: ModelConfig) -> tuple[Shape, ...]:
    return ((model.vocab_size, model.hidden_size),)


def _qkv(model: ModelConfig) -> tuple[Shape, ...]:
    q, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    return tuple((width, model.hidden_size) for width in (q, kv, kv))


def _gate_up(model: ModelConfig) -> tuple[Shape, ...]:
    return ((model.ffn_hidden_size, model.hidden_size),) * 2


def _down(model: ModelConfig) -> tuple[Shape, ...]:
    return ((model.hidden_size, model.ffn_hidden_size),)


_LAYERS = "decoder.layers."
_EXPERTS = _LAYERS + "mlp.experts.experts."

EMBEDDINGS_NAME = Name("embeddings", "embedding.word_embeddings.weight", _vocabulary, VOCAB)
_QKV = Name("attention", _LAYERS + "self_attention.linear_qkv.weight", _qkv, QKV)
_PROJECTION = Name("attention", _LAYERS + "self_attention.linear_proj.weight", _output)
_QK_NORMS = {
    "full_width": (
        Name(
            "attention",
            _LAYERS + "self_attention.q_norm.weight",
            lambda m: ((m.num_heads * m.head_dim,),),
        ),
        Name(
            "attention",
            _LAYERS + "self_attention.k_norm.weight",
            lambda m: ((m.num_kv_heads * m.head_dim,),),
        ),
    ),
    "per_head": (
        Name("attention", _LAYERS + "self_attention.q_layernorm.weight", _one_head),
        Name("attention", _LAYERS + "self_attention.k_layernorm.weight", _one_head),
    ),
}
_BLOCK_NORMS = {
    "after": (
        Name("block_norms", _LAYERS + "self_attn_bda.weight", _hidden),
        Name("block_norms", _LAYERS + "mlp_bda.weight", _hidden),
    ),
    "before": (
        Name("block_norms", _LAYERS + "input_layernorm.weight", _hidden),
        Name("block_norms", _LAYERS + "pre_mlp_layernorm.weight", _hidden),
    ),
}
_FINAL_NORM = Name("final_norm", "decoder.final_layernorm.weight", _hidden)
HEAD_NAME = Name("head", "output_layer.weight", _vocabulary, VOCAB)
DENSE_FFN_NAMES: tuple[Name, ...] = (
    Name("ffn", _LAYERS + "mlp.linear_fc1.weight", _gate_up, GATE_UP),
    Name("ffn", _LAYERS + "mlp.linear_fc2.weight", _down),
)
EXPERT_FFN_NAMES: tuple[Name, ...] = (
    Name("expert.{expert}", _EXPERTS + "linear_fc1.weight", _gate_up, GATE_UP),
    Name("expert.{expert}", _EXPERTS + "linear_fc2.weight", _down),
)
DENSE_OF_EXPERT = dict(zip(EXPERT_FFN_NAMES, DENSE_FFN_NAMES))
ROUTER_NAME = Name(
    "router.{expert}", _LAYERS + "mlp.router.weight", lambda m: ((m.ffns_per_layer, m.hidden_size),)
)


def shared_names(model: ModelConfig) -> tuple[Name, ...]:
    """All that is neither an FFN nor a router."""
    return (
        EMBEDDINGS_NAME,
        _QKV,
        *_QK_NORMS[model.qk_norm],
        _PROJECTION,
        *_BLOCK_NORMS[model.norm_placement],
        _FINAL_NORM,
        *(() if model.tied_embeddings else (HEAD_NAME,)),
    )


def table(model: ModelConfig) -> tuple[Name, ...]:
    """All keys of a checkpoint of `model`, dense or with experts."""
    if model.num_experts is None:
        return shared_names(model) + DENSE_FFN_NAMES
    return shared_names(model) + EXPERT_FFN_NAMES + (ROUTER_NAME,)


@dataclass(frozen=True)
class Slot:
    """One slice of a Megatron key: `key[index]`, and the Hugging Face tensors it holds."""

    model: ModelConfig
    name: Name
    index: tuple[int, ...]

    @property
    def key(self) -> str:
        return self.name.key

    @property
    def hf_names(self) -> tuple[str, ...]:
        places = dict(zip(("layer", "expert"), self.index))
        tensors = family_of(self.model).tensors[self.key]
        return tuple(pattern.format(**places) for pattern in tensors)

    @property
    def hf_shapes(self) -> tuple[Shape, ...]:
        return self.name.shapes(self.model)

    @property
    def shape(self) -> Shape:
        """Shape of the slice, without the layer and expert axes."""
        shapes = self.hf_shapes
        rows = sum(shape[0] for shape in shapes)
        if self.name.fusion is VOCAB:
            rows = self.model.padded_vocab_size(tensor=1)
        return (rows, *shapes[0][1:])

    @property
    def global_shape(self) -> Shape:
        """Shape of the whole key."""
        axes = (self.model.num_layers, self.model.ffns_per_layer)[: len(self.index)]
        return (*axes, *self.shape)

    @property
    def label(self) -> str:
        """The slice's name in errors and manifests: `key[layer,expert]`."""
        return f"{self.key}[{','.join(map(str, self.index))}]" if self.index else self.key

    def from_hf(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Pieces of the slice, whose rows follow one another."""
        return self.name.fusion.join(self.model, tensors)

    def pieces_to_hf(self, tensor: torch.Tensor) -> list[list[torch.Tensor]]:
        """Pieces of each Hugging Face tensor, whose rows follow one another."""
        return self.name.fusion.split(self.model, tensor)

    def to_hf(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The Hugging Face tensors; those of several pieces are copies."""
        return [
            pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            for pieces in self.pieces_to_hf(tensor)
        ]


def slots(model: ModelConfig) -> Iterator[Slot]:
    """Every slice of a checkpoint of `model`, layer by layer."""
    for name in table(model):
        for layer in range(model.num_layers) if name.has_layers else [None]:
            for expert in range(model.ffns_per_layer) if name.has_experts else [None]:
                yield Slot(model, name, tuple(i for i in (layer, expert) if i is not None))
