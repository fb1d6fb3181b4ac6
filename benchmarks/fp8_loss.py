"""Losses with frozen experts in FP8 beside those in bf16: within what seeds and rounding make?

    python -m benchmarks.fp8_loss runs/toy [--seeds 0 1 2] [--steps 100]

From a finished run of examples/toy.yaml, whose folder stays as it is: a domain's branch goes
through SFT (the anchor is frozen) and the merged model through router training (all experts are),
three times with each seed: in bf16; in bf16 with micro-batches of one row, which only rounds
otherwise; and with `fp8_frozen_experts`. Each result's loss on held-out conversations is computed
in bf16, as it would be used.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from megatron_bar import Checkpoint, route, sft
from megatron_bar.methods.load import load_recipe
from megatron_bar.recipe.schema import Recipe
from megatron_bar.recipe.training import Source, Training
from megatron_bar.runtime.console import print_wide
from megatron_bar.runtime.layout import Layout
from megatron_bar.stages.train import SFT_GROUPS
from megatron_bar.training.metrics import read_metrics

BF16, ROUNDED, FP8 = "bf16", "bf16, rows alone", "fp8"
WAYS = {BF16: {}, ROUNDED: {"micro_batch_size": 1}, FP8: {"fp8_frozen_experts": True}}
HELD_OUT = 200  # conversations of each domain

Trains = Callable[[Training, Path, int], Checkpoint]


def _settings(given: Training, steps: int, domains: list[str]) -> Training:
    held_out = [Source(toy=domain, split="heldout", count=HELD_OUT) for domain in domains]
    return dataclasses.replace(
        given,
        steps=steps,
        dtype="bfloat16",
        layout=Layout(),
        log_every=1,
        validation=held_out,
        validate_every=steps,
    )


def _of_sft(recipe: Recipe, run: Path, domain: str, steps: int) -> tuple[Trains, Training]:
    training = _settings(recipe.domains[domain].sft, steps, [domain])
    training = dataclasses.replace(training, trainable=list(SFT_GROUPS))
    start = run / domain / "branch"

    def train(training: Training, out: Path, seed: int) -> Checkpoint:
        return sft(start, training, out, seed=seed)

    return train, training


def _of_routing(recipe: Recipe, run: Path, steps: int) -> tuple[Trains, Training]:
    data = {name: domain.sft.data for name, domain in recipe.domains.items()}

    def train(training: Training, out: Path, seed: int) -> Checkpoint:
        settings = dataclasses.replace(recipe.route, training=training)
        return route(run / "merged", settings, data, out, seed=seed)

    return train, _settings(recipe.route.training, steps, list(data))


def _held_out_loss(result: Checkpoint, training: Training, out: Path) -> float:
    """In bf16, of a step that changes nothing."""
    still = dataclasses.replace(
        training,
        data=training.validation,
        trainable=["final_norm"],
        lr=0.0,
        weight_decay=0.0,
        steps=1,
        validate_every=1,
    )
    sft(result, still, out)
    return read_metrics(out)[-1]["validation_loss"]


def losses(
    train: Trains, training: Training, seeds: list[int], folder: Path
) -> dict[str, list[tuple[list[float], float]]]:
    """By way, for each seed the loss of each step and the one that is left on held-out data."""
    found: dict[str, list[tuple[list[float], float]]] = {way: [] for way in WAYS}
    for seed in seeds:
        for number, (way, changes) in enumerate(WAYS.items()):
            out = folder / f"{seed}-{number}"
            result = train(dataclasses.replace(training, **changes), out, seed)
            steps = [numbers["loss"] for numbers in read_metrics(out)]
            left = _held_out_loss(result, training, folder / f"{seed}-{number}-asked")
            found[way].append((steps, left))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--domain", default="math")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    recipe = load_recipe(options.run / "recipe.yaml")
    run, steps = options.run.resolve(), options.steps
    table = Table(
        "stage",
        "computed in",
        "steps differ from bf16's by",
        "held-out loss",
        "its deviation over seeds",
        "differs from bf16's by",
        box=None,
    )
    for stage, (train, training) in {
        f"{options.domain} SFT": _of_sft(recipe, run, options.domain, steps),
        "router": _of_routing(recipe, run, steps),
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            found = losses(train, training, options.seeds, Path(folder))
        for way, of_seeds in found.items():
            left = [loss for _, loss in of_seeds]
            differences = [a - b for a, (_, b) in zip(left, found[BF16])]
            apart = [
                abs(a - b)
                for (ours, _), (theirs, _) in zip(of_seeds, found[BF16])
                for a, b in zip(ours, theirs, strict=True)
            ]
            table.add_row(
                stage,
                way,
                f"{statistics.mean(apart):.4f}",
                f"{statistics.mean(left):.4f}",
                f"{statistics.stdev(left):.4f}" if len(left) > 1 else "-",
                ", ".join(f"{difference:+.4f}" for difference in differences),
            )
    print_wide(table)


if __name__ == "__main__":
    main()
