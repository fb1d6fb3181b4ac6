"""The one table of names between Megatron-Core and Hugging Face, read in both directions.

Megatron-Core stacks layers: a checkpoint key holds `[L, ...]`, an expert's key `[L, E, ...]`. A
`Slot` is the slice of such a key that corresponds to a few Hugging Face tensors, and knows how to
turn one into the other. Supporting another layout of names takes one more table.

Shape letters: V vocabulary, H hidden, L layers, E experts, F ffn, N heads, K kv heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from megatron_bar.models.config import ModelConfig

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fusion:
    """How several Hugging Face tensors make one Megatron tensor, and back.

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
GATE_UP = Fusion(lambda model, tensors: list(tensors),
                 lambda model, tensor: [[half] for half in tensor.chunk(2)])


@dataclass(frozen=True)
class Name:
    """One line of the table: `{layer}` and `{expert}` in `hf` say which axes the key has.

    `group` is what stages freeze and unfreeze by; an expert's FFN and router row are groups of
    their own, named by its global id.
    """

    group: str
    megatron: str
    hf: tuple[str, ...]
    shapes: Callable[[ModelConfig], tuple[Shape, ...]]
    fusion: Fusion = SAME


def _output(model: ModelConfig) -> tuple[Shape, ...]:
    return ((model.hidden_size, model.num_heads * model.head_dim),)


def _hidden(model: ModelConfig) -> tuple[Shape, ...]:
    return ((model.hidden_size,),)


def _vocabulary(model: ModelConfig) -> tuple[Shape, ...]:
    return ((model.vocab_size, model.hidden_size),)


def _qkv(model: ModelConfig) -> tuple[Shape, ...]:
    q, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    return tuple((width, model.hidden_size) for width in (q, kv, kv))


def _gate_up(model: ModelConfig) -> tuple[Shape, ...]:
    return ((model.ffn_hidden_size, model.hidden_size),) * 2


def _down(model: ModelConfig) -> tuple[Shape, ...]:
    return ((model.hidden_size, model.ffn_hidden_size),)


_OURS = "decoder.layers."
_HF = "model.layers.{layer}."
_EXPERTS = _OURS + "mlp.experts.experts."
_HF_EXPERT = _HF + "mlp.experts.{expert}."

SHARED_NAMES: tuple[Name, ...] = (
    Name("embeddings", "embedding.word_embeddings.weight",
         ("model.embed_tokens.weight",), _vocabulary, VOCAB),
    Name("attention", _OURS + "self_attention.linear_qkv.weight",
         tuple(f"{_HF}self_attn.{x}_proj.weight" for x in "qkv"), _qkv, QKV),
    Name("attention", _OURS + "self_attention.q_norm.weight",
         (_HF + "self_attn.q_norm.weight",), lambda m: ((m.num_heads * m.head_dim,),)),
    Name("attention", _OURS + "self_attention.k_norm.weight",
         (_HF + "self_attn.k_norm.weight",), lambda m: ((m.num_kv_heads * m.head_dim,),)),
    Name("attention", _OURS + "self_attention.linear_proj.weight",
         (_HF + "self_attn.o_proj.weight",), _output),
    Name("block_norms", _OURS + "self_attn_bda.weight",
         (_HF + "post_attention_layernorm.weight",), _hidden),
    Name("block_norms", _OURS + "mlp_bda.weight",
         (_HF + "post_feedforward_layernorm.weight",), _hidden),
    Name("final_norm", "decoder.final_layernorm.weight", ("model.norm.weight",), _hidden),
    Name("head", "output_layer.weight", ("lm_head.weight",), _vocabulary, VOCAB),
)
DENSE_FFN_NAMES: tuple[Name, ...] = (
    Name("ffn", _OURS + "mlp.linear_fc1.weight",
         (_HF + "mlp.gate_proj.weight", _HF + "mlp.up_proj.weight"), _gate_up, GATE_UP),
    Name("ffn", _OURS + "mlp.linear_fc2.weight", (_HF + "mlp.down_proj.weight",), _down),
)
EXPERT_FFN_NAMES: tuple[Name, ...] = (
    Name("expert.{expert}", _EXPERTS + "linear_fc1.weight",
         (_HF_EXPERT + "gate_proj.weight", _HF_EXPERT + "up_proj.weight"), _gate_up, GATE_UP),
    Name("expert.{expert}", _EXPERTS + "linear_fc2.weight",
         (_HF_EXPERT + "down_proj.weight",), _down),
)
DENSE_OF_EXPERT = dict(zip(EXPERT_FFN_NAMES, DENSE_FFN_NAMES))
ROUTER_NAME = Name("router.{expert}", _OURS + "mlp.router.weight",
                   (_HF + "mlp.gate.weight",), lambda m: ((m.num_experts, m.hidden_size),))


def table(model: ModelConfig) -> tuple[Name, ...]:
    """All lines that hold for `model`, dense or with experts."""
    if model.num_experts is None:
        return SHARED_NAMES + DENSE_FFN_NAMES
    return SHARED_NAMES + EXPERT_FFN_NAMES + (ROUTER_NAME,)


@dataclass(frozen=True)
class Slot:
    """One slice of a Megatron key: `key[index]`, and the Hugging Face tensors it holds."""

    model: ModelConfig
    name: Name
    index: tuple[int, ...]

    @property
    def key(self) -> str:
        return self.name.megatron

    @property
    def hf_names(self) -> tuple[str, ...]:
        places = dict(zip(("layer", "expert"), self.index))
        return tuple(pattern.format(**places) for pattern in self.name.hf)

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
        axes = (self.model.num_layers, self.model.num_experts)[: len(self.index)]
        return (*axes, *self.shape)

    @property
    def label(self) -> str:
        """What errors and manifests call the slice: `key[layer,expert]`."""
        return f"{self.key}[{','.join(map(str, self.index))}]" if self.index else self.key

    def from_hf(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Pieces of the slice, whose rows follow one another."""
        return self.name.fusion.join(self.model, tensors)

    def pieces_to_hf(self, tensor: torch.Tensor) -> list[list[torch.Tensor]]:
        """For each Hugging Face tensor, pieces whose rows follow one another."""
        return self.name.fusion.split(self.model, tensor)

    def to_hf(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The Hugging Face tensors; those of several pieces are copies."""
        return [pieces[0] if len(pieces) == 1 else torch.cat(pieces)
                for pieces in self.pieces_to_hf(tensor)]


def slots(model: ModelConfig) -> Iterator[Slot]:
    """Every slice of a checkpoint of `model`, layer by layer."""
    for name in table(model):
        has_experts = "{expert}" in name.hf[0]
        layers = range(model.num_layers) if "{layer}" in name.hf[0] else [None]
        for layer in layers:
            for expert in range(model.num_experts) if has_experts else [None]:
                yield Slot(model, name, tuple(i for i in (layer, expert) if i is not None))
