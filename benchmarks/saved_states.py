"""What a saved state costs each rank: bytes written and read, memory, and the pause of training.

    python -m benchmarks.saved_states [--processes 4 8] [--hidden 512]

A model with two experts in bfloat16, of which the domain's trains with embeddings and head, over
gloo. Bytes are those of the files that a rank wrote, and those that it took from files when it
loaded them. `ideal` is the state's size (or the checkpoint's) divided by the ranks. Memory is what
a phase takes at its peak beyond what the rank had before. The pause is what the training loop waits
in `save`; `hiccup` the longest time that a thread, which wants to run every millisecond, then waits
while the state is being written. Wall times: nothing else should run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.table import Table

from benchmarks.commands import size_of
from benchmarks.counted_reads import count_reads
from megatron_bar.checkpoints.model_io import load_model
from megatron_bar.launch import processes
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.console import print_wide
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.model_run import ModelRun
from megatron_bar.training.resume import Progress, ResumePoints
from megatron_bar.training.saved_files import find_damage
from megatron_bar.training.setup import set_up

_MIB = 2**20
_GROUPS = ["expert.1", "router.1", "embeddings", "head", "final_norm"]


def measure(config: ModelConfig, layout: Layout, folder: Path, out: Path) -> None:
    """Write RANK.json: what each phase cost this rank."""
    with process_groups(layout):
        found: dict[str, dict[str, float]] = {}
        read = count_reads()
        for name, save_async in (("save", False), ("save_async", True)):
            training = Training(trainable=_GROUPS, dtype="bfloat16", save_async=save_async)
            run = ModelRun(config, None, folder / name, layout, 0, name)
            points = ResumePoints(run, set_up(run, training, 8), training)
            points.load()
            with _costs(read) as found[name]:
                began = time.monotonic()
                points.save(Progress(step=1))
                found[name]["pause"] = time.monotonic() - began
                with _hiccup(found[name]):
                    points.finish()
            prefix = f"__{os.environ['RANK']}_"
            found[name]["written"] = sum(
                path.stat().st_size for path in (points.folder / "1").glob(f"{prefix}*")
            )
        with _costs(read) as found["digests"]:
            find_damage(points.folder / "1")
        with _costs(read) as found["resume"]:
            points.load()
        run.write_checkpoint(points.model, 2)
        model = build_model(config, layout, torch.bfloat16)
        with _costs(read) as found["start"]:
            load_model(model, run.folder / "checkpoint")
        (out / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


@contextlib.contextmanager
def _costs(read: list[int]) -> Iterator[dict[str, float]]:
    """Fills in seconds, bytes read from checkpoints' files, and bytes of memory at the peak."""
    costs: dict[str, float] = {}
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from now on
    before, read_before, began = _memory("VmRSS"), sum(read), time.monotonic()
    yield costs
    costs |= {
        "seconds": time.monotonic() - began,
        "read": sum(read) - read_before,
        "memory": _memory("VmHWM") - before,
    }


def _memory(what: str) -> int:
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)
    ]
    return int(line.split()[1]) * 1024


@contextlib.contextmanager
def _hiccup(costs: dict[str, float]) -> Iterator[None]:
    ended, longest = threading.Event(), 0.0

    def tick() -> None:
        nonlocal longest
        last = time.monotonic()
        while not ended.wait(0.001):
            now = time.monotonic()
            longest, last = max(longest, now - last), now

    thread = threading.Thread(target=tick)
    thread.start()
    yield
    ended.set()
    thread.join()
    costs["hiccup"] = longest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; by default temporary")
    options = parser.parse_args()
    hidden = options.hidden
    config = ModelConfig(16 * hidden, hidden, 4 * hidden, 4, hidden // 64, hidden // 64)
    config = config.with_experts(2)
    table = Table(
        "ranks",
        "phase",
        "ideal MiB",
        "wrote",
        "read",
        "memory MiB",
        "pause s",
        "hiccup s",
        "seconds",
        box=None,
    )
    for count in options.processes:
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            folder = Path(temporary)
            processes.start(measure, config, Layout(count), folder, folder, processes=count).wait()
            ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]
            sizes = dict.fromkeys(ranks[0], size_of(folder / "save" / "resume" / "1"))
            sizes["start"] = size_of(folder / "save_async" / "checkpoint")
        for phase, size in sizes.items():
            table.add_row(
                str(count),
                phase,
                f"{size / count / _MIB:.2f}",
                *(
                    _range_over(ranks, phase, name, unit)
                    for name, unit in (
                        ("written", _MIB),
                        ("read", _MIB),
                        ("memory", _MIB),
                        ("pause", 1),
                        ("hiccup", 1),
                        ("seconds", 1),
                    )
                ),
            )
    print_wide(table)


def _range_over(ranks: list[dict], phase: str, name: str, unit: float) -> str:
    values = [rank[phase][name] / unit for rank in ranks if name in rank[phase]]
    return f"{min(values):.2f} - {max(values):.2f}" if values else "-"


if __name__ == "__main__":
    main()
