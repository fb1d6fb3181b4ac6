"""Floating-point operations of a training step: those that its trainable parameters make necessary.

A multiplication and an addition are two. Counted are matrix products, which are nearly all there
is; norms, activations, rotary embeddings and the loss are memory traffic, not arithmetic. Not
counted is what recomputation of activations does a second time.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from megatron_bar.models.config import ModelConfig

# Fused attention computes scores and values forward. Backward it computes the scores again, and
# from them four gradients.
ATTENTION_FORWARD, ATTENTION_BACKWARD = 2, 5


@dataclass(frozen=True)
class Work:
    """Tokens and keys that go through a model in a step, or in several, over all ranks."""

    positions: int  # padding included
    pairs: int  # of a query and a key that it may see
    near_pairs: int  # those that are left of them in a layer whose window slides

    def __add__(self, other: Work) -> Work:
        return Work(
            self.positions + other.positions,
            self.pairs + other.pairs,
            self.near_pairs + other.near_pairs,
        )


@dataclass(frozen=True)
class StepFlops:
    """Operations over all ranks, by what they are spent on."""

    forward: float
    activation_gradients: float
    weight_gradients: float

    @property
    def total(self) -> float:
        return self.forward + self.activation_gradients + self.weight_gradients


def step_flops(model: ModelConfig, work: Work, trainable: Collection[str]) -> StepFlops:
    """Operations of `work` when the groups `trainable` are open.

    Goes through the model from the input on. A weight has a gradient if it trains. An activation
    has one if something that trains lies before it: with only experts open, the first layer's
    attention has no backward pass at all, nor have its experts one towards their input. Where not
    all experts are active, each is taken to get an equal share of the tokens.
    """
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    width = model.num_heads * model.head_dim
    kv_width = model.num_kv_heads * model.head_dim
    forward = activations = weights = 0.0

    def product(
        rows: int, columns: int, input_has_gradient: bool, trains: bool, share: float = 1.0
    ) -> None:
        nonlocal forward, activations, weights
        flops = 2 * work.positions * rows * columns * share
        forward += flops
        activations += flops * input_has_gradient
        weights += flops * trains

    live = "embeddings" in trainable  # whether what reaches this point has a gradient
    attention_trains, norms_train = "attention" in trainable, "block_norms" in trainable
    for layer in range(model.num_layers):
        product(width + 2 * kv_width, hidden, live, attention_trains)
        live |= attention_trains
        sees_all = model.window_of(layer) is None
        scores = 2 * width * (work.pairs if sees_all else work.near_pairs)
        forward += ATTENTION_FORWARD * scores
        activations += ATTENTION_BACKWARD * scores * live
        product(hidden, width, live, attention_trains)
        live |= norms_train
        routers = [f"router.{e}" in trainable for e in range(model.num_experts or 0)]
        for row_trains in routers:
            product(1, hidden, live, row_trains)
        ffns, share = ["ffn"], 1.0
        if model.num_experts is not None:
            ffns = [f"expert.{e}" for e in range(model.num_experts)]
            share = model.active_ffns / model.num_experts
        for group in ffns:
            trains = group in trainable
            product(2 * ffn, hidden, live, trains, share)
            product(hidden, ffn, live or trains, trains, share)
        # Each expert's output is multiplied by its probability, which takes no product.
        live |= any(routers) or norms_train or any(group in trainable for group in ffns)
    live |= "final_norm" in trainable
    head = "embeddings" if model.tied_embeddings else "head"
    product(model.padded_vocab_size(1), hidden, live, head in trainable)
    return StepFlops(forward, activations, weights)
