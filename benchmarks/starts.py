"""What it costs to start a library that could do what a part of ours does.

    python -m benchmarks.starts [--repeat 3]

Each line is a process of its own that imports what both sides need and then one side: processor
seconds and anonymous memory on top of what both need. What isn't installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys

from rich.table import Table

from benchmarks.commands import Run, run
from megatron_bar.runtime.console import console

# What it is for, what both sides need, a module of ours, a library's.
PAIRS = (
    ("intervals", "numpy", "megatron_bar.analysis.intervals", "scipy.stats"),
    (
        "index of a checkpoint",
        "torch",
        "megatron_bar.checkpoints.dcp_index",
        "torch.distributed.checkpoint.filesystem",
    ),
    ("safetensors, read", "torch", None, "safetensors"),
    ("safetensors, shards", "torch", None, "huggingface_hub.serialization"),
    (
        "IFEval",
        "torch",
        "megatron_bar.verifiers.instructions",
        "lm_eval.tasks.ifeval.instructions_registry",
    ),
    ("HTTP", "json", "urllib.request", "httpx"),
)


def _started(modules: list[str], repeat: int) -> Run:
    runs = [run([sys.executable, "-c", f"import {', '.join(modules)}"]) for _ in range(repeat)]
    return Run(
        *(
            statistics.median(getattr(one, name) for one in runs)
            for name in ("seconds", "cpu_seconds", "peak_anonymous")
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    table = Table("for", "import", "CPU s more", "MiB more", box=None)
    needed = {name: _started([name], args.repeat) for name in {pair[1] for pair in PAIRS}}
    for purpose, shared, *sides in PAIRS:
        for module in filter(None, sides):
            if importlib.util.find_spec(module.partition(".")[0]) is None:
                continue
            found, before = _started([shared, module], args.repeat), needed[shared]
            table.add_row(
                purpose,
                module,
                f"{found.cpu_seconds - before.cpu_seconds:.2f}",
                f"{(found.peak_anonymous - before.peak_anonymous) / 2**20:.0f}",
            )
    console.print(table)


if __name__ == "__main__":
    main()
