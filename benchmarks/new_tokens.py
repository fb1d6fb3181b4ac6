"""What models know of tokens that their base never read, on a toy domain's held-out replies.

    python -m benchmarks.new_tokens runs/toy-ablations/frozen runs/toy-ablations/open

For the tool-use branch and the last model of each run: the loss over a reply's tokens, the same
over its new tokens (the tags around calls), and the mean probability of those, given the reply
before them. transformers computes them, on the exported checkpoint.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from megatron_bar.checkpoints.convert import export_hf
from megatron_bar.data import toy
from megatron_bar.data.chat import chat_template
from megatron_bar.data.encoding import encode_conversations
from megatron_bar.data.sources import load_conversations
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.console import console

DOMAIN = "tool_use"


@dataclass(frozen=True)
class Known:
    """Means over the tokens of the replies, in nats, and over new tokens alone."""

    loss: float
    new_loss: float
    new_probability: float


@torch.no_grad()
def measure(folder: Path, count: int, seed: int) -> Known:
    """The Hugging Face model in `folder` on `count` held-out items."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    source = Source(toy=DOMAIN, split="heldout", count=count)
    new = new_tokens(tokenizer)
    losses, new_losses = [], []
    template = chat_template(None, tokenizer)
    for example in encode_conversations(tokenizer, load_conversations(source, seed), template):
        ids_S = torch.tensor(example.ids, dtype=torch.long)
        log_SV = model(ids_S[None]).logits[0].log_softmax(-1)
        for place in range(1, len(ids_S)):
            if example.loss_mask[place]:
                loss = -log_SV[place - 1, ids_S[place]].item()
                losses.append(loss)
                if int(ids_S[place]) in new:
                    new_losses.append(loss)
    return Known(fmean(losses), fmean(new_losses), fmean(math.exp(-x) for x in new_losses))


def new_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Special tokens that stand in the domain's conversations and not in general ones."""

    def special(domain: str) -> set[int]:
        texts = [
            str(turn)
            for c in toy.conversations(domain, "train", 50, 0)
            for turn in tokenizer.apply_chat_template(c["messages"], tokenize=True)
        ]
        return {int(text) for text in texts} & set(tokenizer.added_tokens_decoder)

    return special(DOMAIN) - special("general")


def last_model(run: Path) -> Path:
    """The checkpoint of the run's last model."""
    return next(
        folder for name in ("routed", "merged") if (folder := run / name / "checkpoint").is_dir()
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    table = Table("run", "model", "loss", "of new tokens", "their probability")
    for run in args.runs:
        for name, checkpoint in (
            ("branch", run / DOMAIN / "sft" / "checkpoint"),
            ("last", last_model(run)),
        ):
            with tempfile.TemporaryDirectory() as scratch:
                export_hf(checkpoint, Path(scratch) / "model")
                known = measure(Path(scratch) / "model", args.count, args.seed)
            table.add_row(
                run.name,
                name,
                f"{known.loss:.3f}",
                f"{known.new_loss:.3f}",
                f"{known.new_probability:.3f}",
            )
    console.print(table)


if __name__ == "__main__":
    main()
