"""Strong and weak scaling of a mid-training step over data-parallel processes.

    python -m benchmarks.scaling [--processes 1 2 4] [--hidden 256] [--experts 2]

One thread a process, wall time. Strong: the same global batch whatever the number of processes;
weak: the same batch in each. Efficiency is against one process, and can't reach 1 on more
processes than the machine has cores.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from rich.table import Table

from benchmarks.timing import clock_named, machine, medians
from megatron_bar.data.batch import Batch
from megatron_bar.launch import processes
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import build_model
from megatron_bar.recipe.training import Training
from megatron_bar.runtime.console import console
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout
from megatron_bar.training.groups import freeze
from megatron_bar.training.optimizer import build_optimizer, wrap
from megatron_bar.training.step import forward_backward

LENGTH = 256


def time_steps(config: ModelConfig, layout: Layout, rows: int, repetitions: int, out: Path) -> None:
    """Write seconds.json: the median step with `rows` sequences on each rank."""
    torch.set_num_threads(1)
    with process_groups(layout):
        model = build_model(config, layout)
        last = config.num_experts - 1
        freeze(model, config, [f"expert.{last}", f"router.{last}"])
        training = Training(lr=1e-4)
        wrapped = wrap(model, training)
        optimizer = build_optimizer(wrapped, training)
        wrapped.train()
        tokens_BS = torch.randint(config.vocab_size, (rows, LENGTH + 1))
        batch = Batch(
            tokens_BS[:, :-1],
            tokens_BS[:, 1:],
            torch.ones(rows, LENGTH),
            torch.arange(LENGTH).expand(rows, -1),
            torch.zeros(rows, LENGTH, dtype=torch.long),
            ~torch.ones(rows, 1, LENGTH, LENGTH, dtype=torch.bool).tril(),
        )

        def step() -> None:
            optimizer.zero_grad()
            wrapped.zero_grad_buffer()
            forward_backward(wrapped, [batch])
            optimizer.step()

        seconds = medians({"step": step}, repetitions, clock_named("wall"))["step"]
        if dist.get_rank() == 0:
            (out / "seconds.json").write_text(json.dumps(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--experts", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4, help="sequences in the smallest batch")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    heads = options.hidden // 64
    config = ModelConfig(
        4096, options.hidden, options.hidden * 43 // 16, 4, heads, heads // 2
    ).with_experts(options.experts)
    table = Table(
        "batch",
        "processes",
        "tok/s",
        "efficiency",
        box=None,
        title=f"{os.cpu_count()} cores, {machine(1, 'wall')}",
    )
    for kind in ("strong", "weak"):
        alone = None
        for count in options.processes:
            rows = options.rows if kind == "weak" else max(options.processes) // count
            with tempfile.TemporaryDirectory() as folder:
                processes.start(
                    time_steps,
                    config,
                    Layout(count),
                    rows,
                    options.repetitions,
                    Path(folder),
                    processes=count,
                ).wait()
                seconds = json.loads((Path(folder) / "seconds.json").read_text())
            speed = count * rows * LENGTH / seconds
            alone = alone or speed / count
            table.add_row(kind, str(count), f"{speed:,.0f}", f"{speed / count / alone:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
