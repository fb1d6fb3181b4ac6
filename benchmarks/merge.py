"""Merge against cp of the same bytes and against mergekit's linear merge of dense models.

    python -m benchmarks.merge [--gib 0.5 1 2] [--branches 4] [--mergekit .venv-mergekit]

Ours merges branches and the anchor to one mixture of experts, where all but the anchor's FFN has
moved, so that everything shared must be averaged. mergekit has no such thing; it averages as many
dense models of the same shape to one (`merge_method: linear`, lazy unpickling, out of core). What
compares is the speed over all bytes read and written, processor seconds for each GiB of these, and
peak anonymous memory. mergekit 0.1.5 needs transformers 5 and gets an environment of its own, made
at the first run. Times end when the disk has the bytes. Inputs are in the page cache (warm) or not.
All take turns, and each one's best run counts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from rich.table import Table

from benchmarks.commands import Run, copy_command, run, set_cache, size_of
from benchmarks.conversion import OURS
from benchmarks.models import model_of_size, write_hf_folder
from megatron_bar.runtime.console import console

_NEEDS = [
    "transformers>=5,<6",
    "accelerate",
    "peft",
    "immutables",
    "scipy",
    "sentencepiece",
    "protobuf",
    "cryptography",
    "cffi",
    "click",
    "pydantic",
    "tqdm",
    "pyyaml",
    "jinja2",
]


def mergekit_in(environment: Path) -> str:
    """The command, installed into `environment` if it isn't yet."""
    command = environment / "bin" / "mergekit-yaml"
    if not command.is_file():
        pip = [environment / "bin" / "pip", "install", "--quiet"]
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        torch_version = torch.__version__.partition("+")[0]
        subprocess.run([*pip, f"torch=={torch_version}", *_NEEDS], check=True)
        # Its own requirements pin versions that exclude each other by now.
        subprocess.run([*pip, "--no-deps", "mergekit==0.1.5"], check=True)
    return str(command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, nargs="+", default=[0.5, 1, 2])
    parser.add_argument("--branches", type=int, default=4)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cache", nargs="+", choices=("cold", "warm"), default=["cold", "warm"])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--mergekit", type=Path, default=Path(".venv-mergekit"))
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    args = parser.parse_args()
    mergekit = mergekit_in(args.mergekit)
    table = Table(
        "dense GiB",
        "cache",
        "who, processes",
        "GiB read",
        "GiB written",
        "s",
        "GB/s",
        "CPU s/GiB",
        "peak MiB",
        title=f"Merges of {args.branches} branches and the anchor",
        title_justify="left",
        box=None,
    )
    for gib in args.gib:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            _measure(Path(name), gib, args, mergekit, table)
        console.print(table)


def _measure(
    folder: Path, gib: float, args: argparse.Namespace, mergekit: str, table: Table
) -> None:
    target = folder / "out"
    model = model_of_size(gib)
    dense = [folder / f"dense{i}" for i in range(args.branches + 1)]
    for seed, hf in enumerate(dense):
        write_hf_folder(hf, model, seed)
    anchor, branches = folder / "anchor", [folder / f"branch{i}" for i in range(args.branches)]
    run([*OURS, "import", str(dense[0]), str(anchor)])
    for number, branch in enumerate(branches, 1):
        # Shared parameters and expert 1 of another model, beside the anchor's FFN.
        moved = folder / "moved"
        run([*OURS, "import", str(dense[number]), str(moved)])
        run([*OURS, "branch", "--anchor", str(moved), "--out", str(branch)])
        shutil.rmtree(moved)
    config = folder / "mergekit.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "merge_method": "linear",
                "dtype": "bfloat16",
                "models": [{"model": str(hf), "parameters": {"weight": 1.0}} for hf in dense],
            }
        )
    )
    theirs = (
        f"{mergekit} {config} {target} --lazy-unpickle --no-write-model-card "
        f"--no-copy-tokenizer; find {target} -type f -exec sync {{}} +"
    )
    contestants = {
        "cp of a branch": ([branches[0]], copy_command(branches[0], target, to_disk=True)),
        **{
            f"ours, {count}": (
                [anchor, *branches],
                [
                    *OURS,
                    "merge",
                    "--anchor",
                    str(anchor),
                    "--out",
                    str(target),
                    "--anchor-ffn",
                    "average",
                    "--processes",
                    str(count),
                    *map(str, branches),
                ],
            )
            for count in args.processes
        },
        "mergekit, dense": (dense, ["sh", "-c", theirs]),
    }
    run(copy_command(branches[0], target, to_disk=True))  # uses memory that never was before
    shutil.rmtree(target)
    for cache in args.cache:
        best: dict[str, tuple[Run, int, int]] = {}
        for _ in range(args.repeat):
            for who, (inputs, command) in contestants.items():
                this = _run(inputs, target, command, cache == "cold")
                best[who] = min(best.get(who, this), this, key=lambda one: one[0].seconds)
        for who, (figures, read, written) in best.items():
            table.add_row(
                f"{gib:g}",
                cache,
                who,
                f"{read / 2**30:.2f}",
                f"{written / 2**30:.2f}",
                f"{figures.seconds:.1f}",
                f"{(read + written) / figures.seconds / 1e9:.2f}",
                f"{figures.cpu_seconds / (read + written) * 2**30:.2f}",
                f"{figures.peak_anonymous / 2**20:.0f}",
            )


def _run(inputs: list[Path], target: Path, command: list[str], cold: bool) -> tuple[Run, int, int]:
    """A run, the bytes it read and those it wrote."""
    set_cache(inputs, cold)
    figures = run(command, HF_HUB_OFFLINE="1", OMP_NUM_THREADS=str(os.cpu_count()))
    written = size_of(target)
    shutil.rmtree(target)
    return figures, sum(map(size_of, inputs)), written


if __name__ == "__main__":
    main()
