"""How near a training step comes to what a GPU can do, and who else comes how near.

    python -m benchmarks.gpu_step --goals      every row of GOALS below, in about ten minutes
    python -m benchmarks.gpu_step [--kinds mid all] [--who ours stock transformers] [--layers 4] ...
    python -m benchmarks.gpu_step --goals --device cpu             the same rows at a small size
    python -m benchmarks.gpu_step --device cpu --layers 2 --hidden 64 --vocabulary 512 --rows 2 \
        --ffn 172 --length 64 --dtype float32 --steps 2

One device, layers of OLMo-2 7B's width by default, all tokens supervised, two documents a row:
  ours          the training loop's step; `mid` opens the last expert and its router row, `router`
                all routers, `all` all
  recompute     ours, with `recompute: full`
  deterministic ours, with `deterministic: true`
  fp8           ours, with `fp8_frozen_experts: true`, in bf16; not where all trains
  stock         Megatron-Core's GPTModel with its own MoE and what it has fused, at the same sizes;
                it can't freeze one expert or row, so in `mid` all of them train
  transformers  FlexOlmoForCausalLM in the compute type, sdpa, torch's fused AdamW without fp32
                states; in `mid` the whole router trains. It keeps no documents apart
Each contestant has a process of its own: Megatron's gradient hooks keep a model alive that was
thrown away, whose memory would count for the next. `of floor` is necessary operations
(models/flops.py, frozen parts left out) over the best speed of a matrix product of the shapes in
use, measured in that process before the first step. `planned` is what `plan` says of the memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from benchmarks import gpu_others
from megatron_bar.costs.memory import training_memory
from megatron_bar.data.batch import Batch
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.flops import Work, step_flops
from megatron_bar.models.language_model import build_model
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.console import print_wide
from megatron_bar.runtime.determinism import compute_deterministically
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.fusing import kernels_in_use
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.route import ROUTE_GROUPS
from megatron_bar.training.groups import freeze, group_sizes, matching
from megatron_bar.training.optimizer import build_optimizer, gradient_norm, wrap
from megatron_bar.training.overrides import transformer_overrides
from megatron_bar.training.step import forward_backward

OURS = ("ours", "recompute", "deterministic", "fp8")
WHO = (*OURS, "stock", "transformers")
KINDS = ("mid", "router", "all")
WARM_UP = 2
_SIZES = {
    "layers": 4,
    "hidden": 4096,
    "ffn": 11008,
    "vocabulary": 100_352,
    "experts": 2,
    "rows": 2,
    "length": 4096,
    "steps": 5,
}
# What a CPU computes in seconds.
_SMALL = {"layers": 2, "hidden": 64, "ffn": 172, "vocabulary": 512, "length": 64, "steps": 1}


@dataclass(frozen=True)
class Goal:
    """A model at which the project wants to be ahead, and the share of the floor in each kind."""

    name: str
    sizes: dict[str, int]
    floors: dict[str, float]
    who: tuple[str, ...] = WHO


GOALS = (
    Goal("7B's width", {}, {"mid": 0.70, "all": 0.65}),
    Goal(
        "7B's width, 5 experts",
        {"experts": 5},
        {"router": 0.65, "mid": 0.65},
        ("ours", "fp8", "stock", "transformers"),
    ),
    Goal(
        "OLMo-2 1B, whole",
        {"layers": 16, "hidden": 2048, "ffn": 8192},
        {"mid": 0.45, "all": 0.45},
        ("ours", "recompute", "stock", "transformers"),
    ),
)


def model_of(options: argparse.Namespace) -> ModelConfig:
    heads = max(options.hidden // 128, 1)
    return ModelConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        ffn_hidden_size=options.ffn,
        num_layers=options.layers,
        num_heads=heads,
        num_kv_heads=heads,
        max_position_embeddings=options.length,
    ).with_experts(options.experts)


def open_groups(kind: str, experts: int) -> list[str]:
    last = [f"expert.{experts - 1}", f"router.{experts - 1}"]
    return {"all": ["*"], "router": list(ROUTE_GROUPS), "mid": last}[kind]


def random_batch(options: argparse.Namespace) -> Batch:
    """Rows of two documents, the first of a third of the row."""
    rows, length = options.rows, options.length
    generator = torch.Generator().manual_seed(0)
    tokens_BS = torch.randint(options.vocabulary, (rows, length + 1), generator=generator)
    document_S = (torch.arange(length) >= length // 3).long()
    return Batch(
        tokens_BS=tokens_BS[:, :-1].contiguous(),
        labels_BS=tokens_BS[:, 1:].contiguous(),
        loss_mask_BS=torch.ones(rows, length),
        positions_BS=(torch.arange(length) - document_S * (length // 3)).repeat(rows, 1),
        sources_BS=torch.zeros(rows, length, dtype=torch.long),
        documents_BS=document_S.repeat(rows, 1) + 1,
    )


def our_training(options: argparse.Namespace, who: str, kind: str) -> Training:
    return Training(
        trainable=open_groups(kind, options.experts),
        lr=1e-4,
        recompute="full" if who == "recompute" else "none",
        deterministic=who == "deterministic",
        dtype=dtype_of(options, who),
        fp8_frozen_experts=who == "fp8",
        sequence_length=options.length,
        micro_batch_size=options.rows,
    )


def dtype_of(options: argparse.Namespace, who: str) -> str:
    """What is computed in; FP8 goes with bf16 alone, also where a CPU tries the rest in fp32."""
    return "bfloat16" if who == "fp8" else options.dtype


def our_step(options: argparse.Namespace, training: Training) -> tuple[Callable[[], float], str]:
    """The loop's step, and a word on what computes it."""
    model = model_of(options)
    built = build_model(
        model,
        Layout(),
        getattr(torch, training.compute_dtype),
        1e-3,
        overrides=transformer_overrides(training),
    )
    freeze(built, model, matching(list(group_sizes(model)), training.trainable, "benchmark"))
    wrapped = wrap(built, training)
    optimizer = build_optimizer(wrapped, training)
    wrapped.train()
    batch = random_batch(options)

    def step() -> float:
        optimizer.zero_grad()
        wrapped.zero_grad_buffer()
        loss = forward_backward(wrapped, [batch]).loss
        gradient_norm(optimizer)
        optimizer.step()
        return loss

    return step, f"attention {built.attention.kind}, kernels {kernels_in_use()}"


def contestant(options: argparse.Namespace, who: str, kind: str) -> dict[str, object]:
    """The measurements of one contestant, in this process."""
    peak, model = peak_flops(options), model_of(options)
    groups = matching(list(group_sizes(model)), open_groups(kind, options.experts), "benchmark")
    planned = None
    if who in OURS:
        training = our_training(options, who, kind)
        step, note = our_step(options, training)
        planned = training_memory(model, Layout(), training, groups).total
    else:
        make = {"stock": gpu_others.stock_step, "transformers": gpu_others.transformers_step}[who]
        step, note = make(model, random_batch(options), options.dtype, kind)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP):
        loss = step()
    seconds = statistics.median(timed(step) for _ in range(options.steps))
    batch = random_batch(options)
    tokens = batch.tokens_BS.numel()
    work = Work(tokens, int((batch.positions_BS + 1).sum()), 0)
    needed = step_flops(model, work, groups).total
    memory = (
        torch.cuda.max_memory_allocated()
        if options.device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "who": who,
        "kind": kind,
        "seconds": seconds,
        "tokens": tokens,
        "loss": loss,
        "of_floor": needed / seconds / peak,
        "peak": peak,
        "memory": memory,
        "planned": planned,
        "note": note,
    }


def peak_flops(options: argparse.Namespace) -> float:
    """Operations a second of the best of the products in use."""
    device = torch.cuda.current_device()
    tokens, hidden, ffn = options.rows * options.length, options.hidden, options.ffn
    best = 0.0
    for rows, inner, columns in (
        (tokens, hidden, 2 * ffn),
        (tokens, ffn, hidden),
        (hidden, tokens, 2 * ffn),
    ):
        left, right = (
            torch.randn(*shape, dtype=getattr(torch, options.dtype), device=device)
            for shape in ((rows, inner), (inner, columns))
        )
        seconds = min(timed(lambda left=left, right=right: left @ right) for _ in range(12))
        best = max(best, 2 * rows * inner * columns / seconds)
    return best


def timed(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def measured_apart(options: argparse.Namespace, who: str, kind: str) -> dict[str, Any]:
    """What `contestant` finds in a process of its own; its last words if it fails."""
    same = [f"--{name}={getattr(options, name)}" for name in (*_SIZES, "device", "dtype")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_step", *same, "--only", who, kind],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no words"]
        return {"who": who, "kind": kind, "failed": lines[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def report(results: list[dict[str, Any]], options: argparse.Namespace, goal: Goal | None) -> None:
    table = Table(
        "step",
        "who",
        "ms",
        "tokens/s",
        "of floor",
        "goal",
        "ours is faster by",
        "GiB",
        "planned",
        "loss",
        "note",
        box=None,
        title=(
            f"{'' if goal is None else goal.name + ': '}"
            f"{options.layers} layers, hidden {options.hidden}, {options.experts} "
            f"experts, {options.rows} x {options.length} tokens, {options.dtype}"
        ),
    )
    ours = {r["kind"]: r["seconds"] for r in results if r["who"] == "ours" and "failed" not in r}
    for r in results:
        if "failed" in r:
            table.add_row(r["kind"], r["who"], *["-"] * 8, r["failed"])
            continue
        ratio = f"{r['seconds'] / ours[r['kind']]:.2f}" if r["kind"] in ours else "-"
        wanted = goal.floors[r["kind"]] if goal and r["who"] == "ours" else None
        table.add_row(
            r["kind"],
            r["who"],
            f"{1e3 * r['seconds']:.1f}",
            f"{r['tokens'] / r['seconds']:,.0f}",
            f"{r['of_floor']:.3f}",
            "-" if wanted is None else f"{wanted:.2f}",
            ratio,
            f"{r['memory'] / 2**30:.1f}",
            "-" if r["planned"] is None else f"{r['planned'] / 2**30:.1f}",
            f"{r['loss']:.3f}",
            f"{r['note']}; products {r['peak'] / 1e12:.3g} TFLOP/s",
        )
    print_wide(table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--who", nargs="+", choices=WHO, default=list(WHO))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["mid", "all"])
    parser.add_argument("--goals", action="store_true", help="all rows that there are goals for")
    for name, size in _SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)  # a contestant's own process
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU; --device cpu shows at a small size that it works")
    if options.only is not None:
        if options.only[0] == "deterministic":
            compute_deterministically()
        with process_groups(Layout()):
            print(json.dumps(contestant(options, *options.only)))
        return
    if not options.goals:
        compare(options, options.kinds, options.who)
        return
    small = _SMALL | {"dtype": "float32"} if options.device == "cpu" else {}
    for goal in GOALS:
        sized = argparse.Namespace(**vars(options) | goal.sizes | small)
        compare(sized, list(goal.floors), goal.who, goal)


def rows(kinds: Sequence[str], who: Sequence[str]) -> list[tuple[str, str]]:
    """The kinds and contestants to measure. Where all trains, no expert is frozen."""
    return [(kind, each) for kind in kinds for each in who if (kind, each) != ("all", "fp8")]


def compare(
    options: argparse.Namespace,
    kinds: Sequence[str],
    who: Sequence[str],
    goal: Goal | None = None,
) -> None:
    results = [measured_apart(options, each, kind) for kind, each in rows(kinds, who)]
    report(results, options, goal)


if __name__ == "__main__":
    main()
