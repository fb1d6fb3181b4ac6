"""How near a training step comes to what this machine can do, and who else comes how near.

    python -m benchmarks.train_step [--hidden 256 512 1024] [--experts 2 5] [--threads 1]

Everybody has the same weights, batch and threads, in one process, and takes turns:
  ours         the training loop's step, frozen parameters without gradients
  masked       ours, but gradients of all experts and router rows are computed and those of the
               frozen ones zeroed before the optimizer, as the published code does; `by operations`
               is how much longer that has to take if operations were all there is
  transformers FlexOlmoForCausalLM with the same parameters frozen, torch's fused AdamW; the best
               of the attention and expert implementations that the installed version has
  floor        necessary operations (models/flops.py) over the best speed of a matrix product of
               the shapes in use
A step is forward, backward, clipping and AdamW. `--clock cpu` counts the time that the one thread
computed, for a machine that others use too.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.table import Table
from transformers import FlexOlmoConfig, FlexOlmoForCausalLM

from benchmarks.timing import clock_named, device, machine, medians
from megatron_bar.checkpoints.convert import import_hf
from megatron_bar.checkpoints.model_io import load_model
from megatron_bar.data.batch import Batch
from megatron_bar.data.transfer import on_device
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.flops import Work, step_flops
from megatron_bar.models.language_model import build_model
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.console import console
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.groups import freeze, group_sizes, matching
from megatron_bar.training.optimizer import build_optimizer, wrap
from megatron_bar.training.step import forward_backward

LAYERS, VOCABULARY, HEAD_DIM = 4, 4096, 64  # the head's share is about that of a 7B model
SEQUENCES, LENGTH = 4, 256
SETTINGS = dict(lr=1e-4, weight_decay=0.1, distributed_optimizer=False)


def sizes(hidden: int) -> dict[str, int]:
    """OLMo-2's proportions, with fewer kv heads than heads."""
    heads = hidden // HEAD_DIM
    return dict(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 43 // 16,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=LENGTH,
    )


def random_batch() -> Batch:
    """Rows of two documents, all tokens supervised but the last of each document."""
    generator = torch.Generator().manual_seed(0)
    tokens_BS = torch.randint(VOCABULARY, (SEQUENCES, LENGTH + 1), generator=generator)
    place_S = torch.arange(LENGTH)
    document_S = (place_S >= LENGTH // 3).long()
    document_BS = document_S.expand(SEQUENCES, -1)
    return Batch(
        tokens_BS=tokens_BS[:, :-1],
        labels_BS=tokens_BS[:, 1:],
        loss_mask_BS=(place_S != LENGTH // 3 - 1).float().expand(SEQUENCES, -1),
        positions_BS=(place_S - document_S * (LENGTH // 3)).expand(SEQUENCES, -1),
        sources_BS=torch.zeros(SEQUENCES, LENGTH, dtype=torch.long),
        documents_BS=document_BS,
    )


def our_step(
    checkpoint: Path, patterns: list[str], batch: Batch, masked: tuple[str, ...] = ()
) -> Callable[[], float]:
    """The loop's step. Gradients of the groups `masked` are zeroed before the optimizer."""
    config = ModelConfig.load(checkpoint)
    training = Training(trainable=patterns, **SETTINGS)
    model = build_model(config, Layout())
    load_model(model, checkpoint)
    freeze(model, config, matching(list(group_sizes(config)), patterns, "benchmark"))
    wrapped = wrap(model, training)
    optimizer = build_optimizer(wrapped, training)
    wrapped.train()
    to_zero = [p for p in model.parameters() if p.requires_grad and p.bar_group in masked]

    def step() -> float:
        optimizer.zero_grad()
        wrapped.zero_grad_buffer()
        loss = forward_backward(wrapped, [batch]).loss
        for parameter in to_zero:
            parameter.main_grad.zero_()
        optimizer.step()
        return loss

    return step


def their_steps(
    folder: Path, experts: int, only_last_expert: bool, batch: Batch
) -> Iterator[tuple[str, Callable[[], float]]]:
    """A step of transformers' model for each implementation that it has.

    But for batched_mm, which copies the weights for every token: it is meant for decoding.
    """
    implementations = [{}]
    if hasattr(FlexOlmoForCausalLM, "set_experts_implementation"):  # transformers 5
        implementations = [{"experts_implementation": name} for name in ("eager", "grouped_mm")]
    for choice in implementations:
        for attention in ("eager", "sdpa"):
            model = (
                FlexOlmoForCausalLM.from_pretrained(
                    folder, dtype=torch.float32, attn_implementation=attention, **choice
                )
                .to(device())
                .train()
            )
            name = " ".join(["transformers", attention, *choice.values()])
            yield name, _their_step(model, attention, experts, only_last_expert, batch)


def _their_step(
    model: FlexOlmoForCausalLM, attention: str, experts: int, only_last_expert: bool, batch: Batch
) -> Callable[[], float]:
    last = experts - 1
    masked = []  # tensors that hold frozen rows or experts beside open ones
    for name, parameter in model.named_parameters():
        if not only_last_expert or f".mlp.experts.{last}." in name:
            continue
        fused = name.endswith(("mlp.gate.weight", "experts.gate_up_proj", "experts.down_proj"))
        parameter.requires_grad_(fused)
        if fused:
            masked.append(parameter)
    open_ = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        open_, lr=SETTINGS["lr"], weight_decay=SETTINGS["weight_decay"], fused=True
    )
    mask_B1SS = ~batch.attention_mask_B1SS
    if attention == "eager":
        mask_B1SS = (~mask_B1SS).float() * torch.finfo(torch.float32).min
    labels_BS = batch.labels_BS.masked_fill(batch.loss_mask_BS == 0, -100)

    def step() -> float:
        optimizer.zero_grad()
        logits_BSV = model(
            batch.tokens_BS,
            attention_mask=mask_B1SS,
            use_cache=False,
            position_ids=batch.positions_BS,
        ).logits
        loss = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten())
        loss.backward()
        for parameter in masked:
            parameter.grad[:last].zero_()
        torch.nn.utils.clip_grad_norm_(open_, 1.0)
        optimizer.step()
        return loss.item()

    return step


def products(config: ModelConfig) -> dict[str, tuple[Callable[[], torch.Tensor], int]]:
    """Matrix products of the shapes in use, and their operations: what the peak is taken from."""
    tokens, hidden, ffn = SEQUENCES * LENGTH, config.hidden_size, config.ffn_hidden_size
    x_TH, h_TF, g_TG, w1_GH, w2_HF = (
        torch.randn(*shape, device=device())
        for shape in (
            (tokens, hidden),
            (tokens, ffn),
            (tokens, 2 * ffn),
            (2 * ffn, hidden),
            (hidden, ffn),
        )
    )
    flops = 2 * tokens * hidden * ffn
    return {
        "fc1": (lambda: x_TH @ w1_GH.t(), 2 * flops),
        "fc2": (lambda: h_TF @ w2_HF.t(), flops),
        "fc1 to input": (lambda: g_TG @ w1_GH, 2 * flops),
        "fc2 to input": (lambda: x_TH @ w2_HF, flops),
        "fc1 to weight": (lambda: g_TG.t() @ x_TH, 2 * flops),
        "fc2 to weight": (lambda: x_TH.t() @ h_TF, flops),
    }


def measure(hidden: int, experts: int, repetitions: int, clock: Callable[[], float], table: Table):
    """Add a row for a full-training and one for a mid-training step."""
    (batch,) = on_device([random_batch()])
    tokens = batch.tokens_BS.numel()
    work = Work(tokens, int((batch.positions_BS + 1).sum()), 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        FlexOlmoForCausalLM(
            FlexOlmoConfig(
                **sizes(hidden),
                num_experts=experts,
                num_experts_per_tok=experts,
                pad_token_id=None,
                bos_token_id=None,
                eos_token_id=0,
            )
        ).save_pretrained(folder / "hf")
        import_hf(folder / "hf", folder / "checkpoint")
        config = ModelConfig.load(folder / "checkpoint")
        last = experts - 1
        frozen = tuple(f"{kind}.{e}" for kind in ("expert", "router") for e in range(last))
        for what, patterns in (("full", ["*"]), ("mid", [f"expert.{last}", f"router.{last}"])):
            gemms = products(config)
            steps = {"ours": our_step(folder / "checkpoint", patterns, batch)}
            every = ["expert.*", "router.*"]
            if what == "mid":
                steps["masked"] = our_step(folder / "checkpoint", every, batch, frozen)
            steps |= dict(their_steps(folder / "hf", experts, what == "mid", batch))
            losses = {name: step() for name, step in steps.items()}
            assert max(losses.values()) - min(losses.values()) < 1e-3, losses
            calls = steps | {name: call for name, (call, _) in gemms.items()}
            seconds = medians(calls, repetitions, clock)
            peak = max(flops / seconds[name] for name, (_, flops) in gemms.items())
            needed, if_masked = (
                step_flops(config, work, matching(list(group_sizes(config)), p, "benchmark")).total
                for p in (patterns, every)
            )
            theirs = {n: s for n, s in seconds.items() if n.startswith("transformers")}
            best = min(theirs, key=theirs.get)
            ours = seconds["ours"]
            table.add_row(
                what,
                str(hidden),
                str(experts),
                f"{tokens / ours:,.0f}",
                f"{needed / peak / ours:.2f}",
                f"{theirs[best] / ours:.2f}",
                best.removeprefix("transformers "),
                f"{seconds['masked'] / ours:.2f}" if "masked" in seconds else "-",
                f"{if_masked / needed:.2f}" if "masked" in seconds else "-",
                f"{peak / 1e9:,.0f}",
            )
            console.print(
                f"{what} hidden {hidden}, {experts} experts: "
                + ", ".join(
                    f"{n} {tokens / s:,.0f} tok/s" for n, s in seconds.items() if n not in gemms
                )
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--experts", type=int, nargs="+", default=[2, 5])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads > 1:
        parser.error("--clock cpu counts one thread")
    torch.set_num_threads(options.threads)
    table = Table(
        "step",
        "hidden",
        "experts",
        "ours, tok/s",
        "of floor",
        "x transformers",
        "its best",
        "x masked",
        "by operations",
        "peak GFLOP/s",
        box=None,
        title=machine(options.threads, options.clock),
    )
    with process_groups(Layout()):
        for hidden in options.hidden:
            for experts in options.experts:
                measure(hidden, experts, options.repetitions, clock_named(options.clock), table)
    console.print(table)


if __name__ == "__main__":
    main()
