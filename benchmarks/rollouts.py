"""Generation: our engine and transformers' `generate`, on the same model of two experts.

    python -m benchmarks.rollouts [--hidden 128 512] [--batch 1 8 16 32 64] [--threads 1]
                                [--clock wall]

Tokens/s, and ours over transformers' (with its cache, the faster of its eager and fused attention):

- even: as many requests as the batch holds, all of the same length, greedy. The tokens of both must
  be the same.
- uneven: four times as many requests, whose responses end at random, after 24 tokens in the mean
  and 64 at most. transformers answers batch after batch; tokens after an end count for neither.

`--clock cpu` counts the time that the one thread computed, for a machine that others use too.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.table import Table
from transformers import FlexOlmoConfig, FlexOlmoForCausalLM

from benchmarks.timing import clock_named, device, machine, medians
from megatron_bar.checkpoints.convert import import_hf
from megatron_bar.checkpoints.model_io import load_model
from megatron_bar.generation.engine import Request, Sampling
from megatron_bar.generation.rollouts import MegatronEngine
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import LanguageModel, build_model
from megatron_bar.runtime.console import console
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout

PROMPT, NEW = 32, 64
VOCABULARY = 1024
MEAN_LENGTH = 24
LAYERS = 4

Prompts = list[list[int]]


def build(hidden: int, folder: Path) -> tuple[LanguageModel, dict[str, FlexOlmoForCausalLM]]:
    """The same weights as ours, and as transformers' with either attention."""
    torch.manual_seed(0)
    FlexOlmoForCausalLM(
        FlexOlmoConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=LAYERS,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=PROMPT + NEW,
            rope_theta=500_000.0,
            rms_norm_eps=1e-6,
            num_experts=2,
            num_experts_per_tok=2,
            norm_topk_prob=False,
            tie_word_embeddings=False,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=0,
            initializer_range=0.1,
        )
    ).save_pretrained(folder / "hf")
    import_hf(folder / "hf", folder / "checkpoint")
    config = ModelConfig.load(folder / "checkpoint")
    ours = build_model(config, Layout(), sequence_parallel=False)
    load_model(ours, folder / "checkpoint")
    theirs = {
        name: FlexOlmoForCausalLM.from_pretrained(folder / "hf", attn_implementation=name)
        .to(device())
        .eval()
        for name in ("eager", "sdpa")
    }
    return ours.eval(), theirs


def our_answers(
    model: LanguageModel, prompts: Prompts, batch: int, sampling: Sampling
) -> Callable[[], list[list[int]]]:
    requests = [Request(prompt, (i,)) for i, prompt in enumerate(prompts)]
    engine = MegatronEngine(model, batch)
    return lambda: [r.tokens for r in engine.generate(requests, sampling)]


def their_answers(
    model: FlexOlmoForCausalLM, prompts: Prompts, batch: int, sampling: Sampling
) -> Callable[[], list[list[int]]]:
    stops = sorted(sampling.stop_ids) or None
    sampled = dict(do_sample=True, top_k=0) if sampling.temperature else dict(do_sample=False)

    def generate() -> list[list[int]]:
        torch.manual_seed(sampling.seed)
        answers = []
        for first in range(0, len(prompts), batch):
            tokens = torch.tensor(prompts[first : first + batch], device=device())
            found = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=NEW,
                eos_token_id=stops,
                pad_token_id=0,
                **sampled,
            )
            answers += [_up_to_stop(row, sampling) for row in found[:, PROMPT:].tolist()]
        return answers

    return generate


def _up_to_stop(tokens: list[int], sampling: Sampling) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in sampling.stop_ids), len(tokens) - 1)
    return tokens[: end + 1]


def rates(
    contestants: dict[str, Callable[[], list[list[int]]]],
    repetitions: int,
    clock: Callable[[], float],
) -> tuple[float, float]:
    """Tokens/s of ours and of the best of theirs."""
    counts = {name: sum(map(len, call())) for name, call in contestants.items()}
    seconds = medians(contestants, repetitions, clock)
    found = {name: counts[name] / seconds[name] for name in contestants}
    return found.pop("ours"), max(found.values())


def measure(
    hidden: int, batches: Sequence[int], repetitions: int, clock: Callable[[], float], table: Table
) -> None:
    even = Sampling(NEW, frozenset())
    stops = frozenset(range(0, VOCABULARY, MEAN_LENGTH))
    uneven = Sampling(NEW, stops, temperature=1.0)
    with tempfile.TemporaryDirectory() as name:
        ours, theirs = build(hidden, Path(name))
        for batch in batches:
            cells = []
            for sampling, count in ((even, batch), (uneven, 4 * batch)):
                prompts = torch.randint(1, VOCABULARY, (count, PROMPT)).tolist()
                calls = {"ours": our_answers(ours, prompts, batch, sampling)}
                calls |= {n: their_answers(m, prompts, batch, sampling) for n, m in theirs.items()}
                if sampling is even:
                    answers = [call() for call in calls.values()]
                    assert all(answer == answers[0] for answer in answers)
                our_rate, their_rate = rates(calls, repetitions, clock)
                cells += [f"{our_rate:,.0f}", f"{their_rate:,.0f}", f"{our_rate / their_rate:.2f}"]
            table.add_row(str(hidden), str(batch), *cells)
            console.print(f"hidden {hidden}, batch {batch}: {' '.join(cells)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads > 1:
        parser.error("--clock cpu counts one thread")
    clock = clock_named(options.clock)
    torch.set_num_threads(options.threads)
    table = Table(
        "hidden",
        "batch",
        "even: ours, tok/s",
        "theirs",
        "ratio",
        "uneven: ours, tok/s",
        "theirs",
        "ratio",
        box=None,
        title=machine(options.threads, options.clock),
    )
    with process_groups(Layout()):
        for hidden in options.hidden:
            measure(hidden, options.batch, options.repetitions, clock, table)
    console.print(table)


if __name__ == "__main__":
    main()
