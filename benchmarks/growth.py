"""What the N-th expert costs: its branch, the merge and the router, one expert at a time.

    python -m benchmarks.growth [--experts 6] [--steps 20] [--route-steps 20] [--runs DIR]

Runs a small toy recipe with one domain, then `megatron-bar upgrade --add` for each further one, and
prints seconds, supervised tokens and operations of the stages that made each expert. The branches
do equal work on different domains; evaluation and report are left out. Seconds are a stage's own,
from its first line to its last, without the start of its process: with other work on the machine
trust the operations, which are counted from shapes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from benchmarks.timing import machine
from megatron_bar.costs.compute import stage_flops
from megatron_bar.launch.local import run_recipe
from megatron_bar.launch.upgrade import UpgradeRequest, upgrade
from megatron_bar.methods import stage_graph
from megatron_bar.methods.load import load_recipe
from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.console import console
from megatron_bar.stages.context import read_done

DOMAINS = ("math", "code", "tool_use", "safety")
NAME = "growth"


def recipe(runs: Path, domain: str, number: int, steps: int, route_steps: int) -> dict[str, Any]:
    """A recipe of one domain, `domain` of the toy world, called by its number."""
    training = dict(
        sequence_length=256, global_batch_size=4, micro_batch_size=4, lr=4e-3, steps=steps
    )
    chats = [
        {"toy": domain, "count": 400, "name": f"{domain}_{number}"},
        {"toy": "general", "count": 200},
    ]
    return {
        "name": NAME,
        "runs": str(runs),
        "export": False,
        "pretrain": {
            "vocab_size": 1024,
            "chat": [{"toy": "general", "count": 200}],
            "training": training
            | {
                "data": [
                    {"toy": "general", "count": 200, "name": "prose"},
                    *(
                        {"toy": name, "count": 200, "name": f"{name}_text"}
                        for name in ("math", "code")
                    ),
                ]
            },
        },
        "domains": {
            f"expert_{number}": {
                "sft": training
                | {
                    "data": chats,
                    "trainable": ["expert.1", "router.1"],
                }
            }
        },
        "route": {"training": training | {"lr": 1e-2, "steps": route_steps}},
        "evaluate": {
            "general": [{"toy": "general", "split": "heldout", "count": 2}],
            "max_new_tokens": 4,
        },
    }


def cost(run: Path, number: int) -> dict[str, dict[str, float]]:
    """Seconds, tokens and operations of the branch, the merge and the router of expert `number`."""
    costs: dict[str, dict[str, float]] = {}
    for stage in stage_graph(load_recipe(run / "recipe.yaml")):
        part = {"merge": "merge", "route": "route"}.get(stage.KIND)
        if stage.domain == f"expert_{number}":
            part = "branch"
        if part is None:
            continue
        done = read_done(run / stage.name)
        spent = costs.setdefault(part, dict.fromkeys(("seconds", "tokens", "operations"), 0.0))
        spent["seconds"] += done["seconds"]
        spent["tokens"] += done.get("tokens", 0)
        if "open_groups" in done:
            model = ModelConfig.load(run / stage.name / "checkpoint")
            spent["operations"] += stage_flops(
                model, stage.training, done["open_groups"], done["steps"]
            )
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experts", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20, help="of each branch")
    parser.add_argument("--route-steps", type=int, default=20, help="of the router, each time")
    parser.add_argument("--runs", type=Path, help="where to keep the run (default: nowhere)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.runs or Path(scratch)
        runs.mkdir(parents=True, exist_ok=True)
        rows = []
        for number in range(1, options.experts + 1):
            path = runs / f"expert_{number}.yaml"
            domain = DOMAINS[(number - 1) % len(DOMAINS)]
            path.write_text(
                yaml.safe_dump(recipe(runs, domain, number, options.steps, options.route_steps))
            )
            if number == 1:
                run = run_recipe(load_recipe(path))
            else:
                upgrade(run, UpgradeRequest(add={f"expert_{number}": str(path)}))
            rows.append(cost(run, number))
    console.print(_table(rows))


def _table(rows: list[dict[str, dict[str, float]]]) -> Table:
    table = Table(title=f"Cost of the N-th expert, {machine(1, 'wall')}", box=None)
    parts = ("branch", "merge", "route")
    for column in (
        "N",
        *(f"{part} s" for part in parts),
        "sum s",
        "branch tokens",
        "route tokens",
        "branch GFLOP",
        "route GFLOP",
        "sum GFLOP",
    ):
        table.add_column(column, justify="right")
    for number, costs in enumerate(rows, 1):
        seconds = [costs[part]["seconds"] for part in parts]
        work = [costs[part]["operations"] / 1e9 for part in ("branch", "route")]
        table.add_row(
            str(number),
            *(f"{value:.1f}" for value in [*seconds, sum(seconds)]),
            *(f"{costs[part]['tokens']:,.0f}" for part in ("branch", "route")),
            *(f"{value:,.0f}" for value in [*work, sum(work)]),
        )
    return table


if __name__ == "__main__":
    main()
