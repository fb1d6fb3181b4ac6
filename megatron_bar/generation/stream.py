"""One answer, token by token as it comes, with what the experts had in each; in a single process.

Shapes: S prompt tokens, L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from megatron_bar.generation.engine import Request, Sampling
from megatron_bar.generation.sampling import choose, uniform_numbers
from megatron_bar.models.cache import RowCache
from megatron_bar.models.language_model import LanguageModel
from megatron_bar.models.routing_record import RoutingRecord, record_routing


@dataclass(frozen=True)
class StreamedToken:
    """A token of an answer."""

    id: int
    logprob: float  # at the sampling temperature (1 where that is 0)
    # What each expert had in the pass that chose the token, in the mean over the layers; they sum
    # to 1. Empty for a dense model.
    shares: tuple[float, ...]
    ends: bool  # whether it is a stop token


@torch.no_grad()
def stream_tokens(
    model: LanguageModel, prompt: Sequence[int], sampling: Sampling
) -> Iterator[StreamedToken]:
    """The tokens that `MegatronEngine` answers with, each as soon as it is chosen.

    `model` is whole in this process, in eval mode. The answer ends with a stop token, after
    `sampling.max_new_tokens`, or where the model's positions end. `prompt` leaves room for one
    token at least.
    """
    device = torch.device(torch.cuda.current_device())
    length = len(prompt) + sampling.longest(Request(prompt), model.max_sequence_length)
    cache = RowCache(1, length)
    row_R = torch.zeros(1, dtype=torch.long, device=device)
    if len(prompt) > 1:
        cache.prefill(len(prompt) - 1, row_R, row_R)
        _forward(model, cache, prompt[:-1], device)
    uniform_RN = None
    if sampling.temperature:
        uniform_RN = uniform_numbers([Request(prompt)], sampling).to(device)
    token = prompt[-1]
    for nth, position in enumerate(range(len(prompt) - 1, length - 1)):
        cache.decode([position], device)
        logits_RV, shares = _forward(model, cache, [token], device)
        drawn_R = None if uniform_RN is None else uniform_RN[:, nth]
        chosen_R, logprob_R = choose(logits_RV, sampling.temperature, drawn_R)
        token = int(chosen_R)
        ends = token in sampling.stop_ids
        yield StreamedToken(token, float(logprob_R), shares, ends)
        if ends:
            return


def _forward(
    model: LanguageModel, cache: RowCache, tokens: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, tuple[float, ...]]:
    """What the model says after the last token, `[1, V]`, and its experts' shares of that token."""
    tokens_RS = torch.tensor([list(tokens)], device=device)
    experts = model.config.num_moe_experts
    if experts is None:
        return _logits(model, cache, tokens_RS), ()
    record = _LastToken(model.config.num_layers, experts)
    with record_routing(model, record):
        logits_RV = _logits(model, cache, tokens_RS)
    return logits_RV, tuple(record.shares_LE.mean(0).tolist())


def _logits(model: LanguageModel, cache: RowCache, tokens_RS: torch.Tensor) -> torch.Tensor:
    output = model(tokens_RS, None, None, inference_context=cache, runtime_gather_output=True)
    return output[:, -1, : model.unpadded_vocab_size]


class _LastToken(RoutingRecord):
    """Keeps what the last token of a pass was given, by layer."""

    def __init__(self, layers: int, experts: int) -> None:
        super().__init__(layers, experts)
        self.shares_LE = self.sums_LCX.new_zeros(layers, experts)

    def add(self, layer: int, probs_TE: torch.Tensor) -> torch.Tensor:
        shares_TE = super().add(layer, probs_TE)
        self.shares_LE[layer - 1] = shares_TE[-1]
        return shares_TE
