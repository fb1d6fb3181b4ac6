"""Import, export and branch against cp of the same bytes and transformers' load and save.

    python -m benchmarks.conversion [--gib 0.5 1 2 4 8] [--processes 1 2] [--cache cold warm]

Dense OLMo-2 models in bf16 (`benchmarks.models`). Every figure is a whole command: Python's start
and imports are in it, and are printed alone too. Everybody's time ends when the disk has the bytes
(fsync), for `cp, no sync` when cp does. Peak memory is anonymous memory of the largest process.
All take turns, and each one's best run counts. A cp that isn't timed goes first: on a virtual
machine, memory that the page cache has never used before can cost cp threefold.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from benchmarks.commands import Run, copy_command, run, set_cache, size_of
from benchmarks.models import model_of_size, write_hf_folder
from megatron_bar.runtime.console import console

OURS = [sys.executable, "-m", "megatron_bar"]
_TRANSFORMERS = """
import os, sys
from pathlib import Path
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
model.save_pretrained(sys.argv[2])
for path in Path(sys.argv[2]).iterdir():
    with open(path) as file:
        os.fsync(file.fileno())
"""
TRANSFORMERS = [sys.executable, "-c", _TRANSFORMERS]
START = [sys.executable, "-c", "import megatron_bar.checkpoints.convert"]


def contestants(
    hf: Path, checkpoint: Path, target: Path, processes: list[int]
) -> Iterator[tuple[str, Path, list[str]]]:
    """Name, what it reads, command."""
    yield "cp", hf, copy_command(hf, target, to_disk=True)
    yield "cp, no sync", hf, copy_command(hf, target, to_disk=False)
    for count in processes:
        more = ["--processes", str(count)]
        yield f"import, {count}", hf, [*OURS, "import", str(hf), str(target), *more]
        yield (
            f"export, {count}",
            checkpoint,
            [*OURS, "export", str(checkpoint), str(target), *more],
        )
        yield (
            f"branch, {count}",
            checkpoint,
            [*OURS, "branch", "--anchor", str(checkpoint), "--out", str(target), *more],
        )
    yield "transformers", hf, [*TRANSFORMERS, str(hf), str(target)]


def add_row(
    table: Table, gib: float, cache: str, name: str, size: int, figures: Run, cp_speed: float
) -> None:
    speed = size / figures.seconds
    table.add_row(
        f"{gib:g}",
        cache,
        name,
        f"{size / 2**30:.2f}",
        f"{figures.seconds:.1f}",
        f"{speed / 1e9:.2f}",
        f"{speed / cp_speed:.2f}",
        f"{figures.cpu_seconds:.1f}",
        f"{figures.peak_anonymous / 2**20:.0f}",
    )


def new_table(title: str) -> Table:
    return Table(
        "model GiB",
        "cache",
        "who, processes",
        "GiB written",
        "s",
        "GB/s",
        "of cp",
        "CPU s",
        "peak MiB",
        title=title,
        title_justify="left",
        box=None,
    )


def _best_runs(
    hf: Path, checkpoint: Path, target: Path, processes: list[int], cache: str, repeat: int
) -> dict[str, tuple[int, Run]]:
    """By contestant, the bytes written and the fastest of its runs."""
    found: dict[str, tuple[int, Run]] = {}
    for _ in range(repeat):
        for who, source, command in contestants(hf, checkpoint, target, processes):
            set_cache([source], cache == "cold")
            figures = run(command)
            this = size_of(target), figures
            shutil.rmtree(target)
            found[who] = min(found.get(who, this), this, key=lambda one: one[1].seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, nargs="+", default=[0.5, 1, 2, 4, 8])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cache", nargs="+", choices=("cold", "warm"), default=["cold", "warm"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    args = parser.parse_args()
    table = new_table("Conversions")
    console.print(f"Python's start and imports alone: {run(START).seconds:.1f} s")
    for gib in args.gib:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            folder = Path(name)
            hf, checkpoint, target = folder / "hf", folder / "checkpoint", folder / "out"
            write_hf_folder(hf, model_of_size(gib))
            run([*OURS, "import", str(hf), str(checkpoint)])
            run(copy_command(hf, target, to_disk=True))
            shutil.rmtree(target)
            for cache in args.cache:
                found = _best_runs(hf, checkpoint, target, args.processes, cache, args.repeat)
                size, figures = found["cp"]
                cp_speed = size / figures.seconds
                for who, (size, figures) in found.items():
                    add_row(table, gib, cache, who, size, figures, cp_speed)
        console.print(table)


if __name__ == "__main__":
    main()
