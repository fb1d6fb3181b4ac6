"""Greedy generation with a key-value cache, in the process that holds the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from megatron.core.inference.contexts import StaticInferenceContext

from megatron_bar.models.olmo import OlmoModel


@torch.no_grad()
def generate_greedy(
    model: OlmoModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Collection[int],
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """The most likely continuation of each prompt, up to and without a stop token.

    Matches transformers' `generate(do_sample=False)` token for token. `model` was built with
    `sequence_parallel=False` and holds all layers; tensor and expert parallel ranks call this
    together and get the same answers.

    Prompts of a batch differ in length: all are fed up to the shortest, and from there on every
    position takes the prompt's token where the prompt goes on, and the model's otherwise. So rows
    share positions, and nothing is padded or masked.
    """
    was_training = model.training
    model.eval()
    # Prompts of like length share a batch, since a batch runs from its shortest to its longest.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[]] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = [list(prompts[i]) for i in chosen]
        for i, answer in zip(chosen, _generate_batch(model, batch, max_new_tokens, stop_ids)):
            answers[i] = answer
        advance(len(chosen))
    model.train(was_training)
    return answers


def _generate_batch(
    model: OlmoModel, prompts: list[list[int]], max_new_tokens: int, stop_ids: Collection[int]
) -> list[list[int]]:
    device = torch.cuda.current_device()
    lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
    shortest, longest = int(lengths_B.min()), int(lengths_B.max())
    end = min(longest + max_new_tokens, model.max_sequence_length)
    tokens_BS = torch.zeros(len(prompts), end, dtype=torch.long, device=device)
    for row_S, prompt in zip(tokens_BS, prompts):
        row_S[: len(prompt)] = torch.tensor(prompt, device=device)
    stops = torch.tensor(sorted(stop_ids), device=device)
    stopped_B = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    context = StaticInferenceContext(len(prompts), end)
    done = 0
    for place in range(shortest, end):
        positions_BS = torch.arange(done, place, device=device).expand(len(prompts), -1)
        logits_B1V = model(
            tokens_BS[:, done:place], positions_BS, None,
            inference_context=context, runtime_gather_output=True,
        )
        context.sequence_len_offset = done = place
        context.enable_decode_mode()
        chosen_B = logits_B1V[:, -1, : model.unpadded_vocab_size].argmax(-1)
        in_prompt_B = place < lengths_B
        tokens_BS[:, place] = torch.where(in_prompt_B, tokens_BS[:, place], chosen_B)
        stopped_B |= ~in_prompt_B & torch.isin(chosen_B, stops)
        stopped_B |= place + 1 >= lengths_B + max_new_tokens
        if stopped_B.all():
            break
    stop_set = set(stop_ids)
    return [
        _until_stop(row[len(prompt) : len(prompt) + max_new_tokens], stop_set)
        for row, prompt in zip(tokens_BS[:, : place + 1].tolist(), prompts)
    ]


def _until_stop(tokens: list[int], stops: set[int]) -> list[int]:
    return next((tokens[:i] for i, token in enumerate(tokens) if token in stops), tokens)
