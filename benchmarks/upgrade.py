"""Replacing an expert by a better one: what its domain gains and the others lose.

    python -m benchmarks.upgrade runs/toy [runs/toy-1 ...] [--domain code] [--steps 30]

For each finished run of examples/toy.yaml, whose folder stays as it is: a copy gets a weak expert,
from an SFT of a few steps and no mid-training, and is then upgraded with the run's own, finished
one. Prints the scores of both routed models. Each answers the same held-out items, so the noise
that stands beside a change, for items drawn anew, is rather too wide.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

from rich.table import Table

from megatron_bar.analysis.upgrade import Upgrade
from megatron_bar.launch.upgrade import UpgradeRequest, upgrade
from megatron_bar.methods.load import load_recipe, save_recipe
from megatron_bar.recipe.schema import Domain
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.console import console


def weakened(
    source: Path, folder: Path, domain: str, steps: int, items: int, overrides: list[str]
) -> Path:
    """A copy of the run `source` in `folder` whose expert for `domain` has learned for `steps`."""
    run = folder / source.resolve().name
    shutil.copytree(source, run)
    recipe = load_recipe(run / "recipe.yaml")
    whole = recipe.domains[domain]
    weak = Domain(sft=dataclasses.replace(whole.sft, steps=steps), tasks=whole.tasks)
    path = folder / f"{run.name}-weak.yaml"
    save_recipe(dataclasses.replace(recipe, domains={domain: weak}), path)
    tasks = [
        f"domains.{name}.tasks={_items(known.tasks, items)}"
        for name, known in recipe.domains.items()
    ]
    upgrade(
        run,
        UpgradeRequest(
            replace={domain: str(path)},
            overrides=(
                "export=false",
                f"evaluate.general={_items(recipe.evaluate.general, items)}",
                *tasks,
                *overrides,
            ),
        ),
    )
    return run


def _items(sources: list[Source], items: int) -> str:
    """The same sources with so many items each, as an override's value."""
    return json.dumps([dataclasses.asdict(source) | {"count": items} for source in sources])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--domain", default="code")
    parser.add_argument("--steps", type=int, default=30, help="of the weak expert's SFT")
    parser.add_argument("--items", type=int, default=200, help="held-out items of each task")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        help="a key of the recipe for both routed models; may be repeated",
    )
    options = parser.parse_args()
    table = Table(title=f"{options.domain} replaced", box=None)
    for column in ("run", "task", "before", "after", "change", "noise"):
        table.add_column(column, justify="left" if column in ("run", "task") else "right")
    with tempfile.TemporaryDirectory() as folder:
        for source in options.runs:
            run = weakened(
                source, Path(folder), options.domain, options.steps, options.items, options.set
            )
            better = str(source / options.domain)
            done = upgrade(run, UpgradeRequest(replace={options.domain: better}))
            console.print(done.words())
            _add(table, source.name, done)
    console.print(table)


def _add(table: Table, name: str, done: Upgrade) -> None:
    for change in done.changes:
        table.add_row(
            name,
            change.task,
            f"{change.before:.3f}",
            f"{change.after:.3f}",
            f"{change.difference:+.3f}",
            f"{change.noise:.3f}",
        )


if __name__ == "__main__":
    main()
