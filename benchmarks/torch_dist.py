"""Our reader and writer of checkpoints against torch.distributed.checkpoint's, without groups.

    python -m benchmarks.torch_dist [--gib 0.5] [--repeat 3]

Each figure is a process of its own over a dense bf16 OLMo-2 (`benchmarks.models`), whose files lie
in the page cache: processor seconds beyond those of a process that only imports torch, and its peak
of anonymous memory. `open` reads the index, `slice` one layer's slice too, `read` every slice,
`write` makes a checkpoint of a Hugging Face folder. The library writes a tensor at a time, as it is
made, through a planner; it searches for no NaN, makes no digest and can't go on after a kill.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from benchmarks.commands import Run, run, set_cache, size_of
from benchmarks.models import model_of_size, write_hf_folder
from megatron_bar.runtime.console import console


def _slots(checkpoint: Path) -> list:
    from megatron_bar.checkpoints.names import slots
    from megatron_bar.models.config import ModelConfig

    return list(slots(ModelConfig.load(checkpoint)))


def _our_reader(checkpoint: Path) -> Callable:
    from megatron_bar.checkpoints.dcp import CheckpointReader

    reader = CheckpointReader(checkpoint)
    reader.manifest = None  # its check is a second pass, which the library hasn't
    return reader.read


def _their_reader(checkpoint: Path) -> Callable:
    import torch
    from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, LoadPlan
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
    from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

    reader = FileSystemReader(checkpoint)
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, is_coordinator=True)

    class Planner(DefaultLoadPlanner):
        def __init__(self, target: torch.Tensor) -> None:
            self.target = target

        def resolve_tensor(self, item):
            for axis, (start, size) in enumerate(zip(item.dest_offsets, item.lengths)):
                self.target = self.target.narrow(axis, start, size)
            return self.target

        def commit_tensor(self, item, tensor) -> None:
            pass

    def read(slot) -> torch.Tensor:
        entry = metadata.state_dict_metadata[slot.key]
        sizes = torch.Size((*(1 for _ in slot.index), *slot.shape))
        offsets = torch.Size((*slot.index, *(0 for _ in slot.shape)))
        target = torch.empty(sizes, dtype=entry.properties.dtype)
        items = create_read_items_for_chunk_list(
            slot.key, entry, [ChunkStorageMetadata(offsets, sizes)]
        )
        reader.read_data(LoadPlan(items), Planner(target))
        return target.reshape(slot.shape)

    return read


def _look_at(tensor) -> None:
    import torch

    tensor.reshape(-1).view(torch.uint8).amax()  # all bytes are looked at, once


def _open(reader: Callable, checkpoint: Path, target: Path) -> None:
    reader(checkpoint)


def _slice(reader: Callable, checkpoint: Path, target: Path) -> None:
    _look_at(reader(checkpoint)(_slots(checkpoint)[1]))


def _read(reader: Callable, checkpoint: Path, target: Path) -> None:
    read = reader(checkpoint)
    for slot in _slots(checkpoint):
        _look_at(read(slot))


def _our_write(hf: Path, target: Path) -> None:
    from megatron_bar.checkpoints.convert import import_hf

    import_hf(hf, target, processes=1)


def _their_write(hf: Path, target: Path) -> None:
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        MetadataIndex,
        TensorProperties,
    )
    from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

    from megatron_bar.checkpoints.hf import model_config_from_hf
    from megatron_bar.checkpoints.hf_weights import HfReader
    from megatron_bar.checkpoints.names import slots

    reader = HfReader(hf)
    slot_at, items, number_of = {}, [], {}
    for slot in slots(model_config_from_hf(hf)):
        offsets = torch.Size((*slot.index, *(0 for _ in slot.shape)))
        sizes = torch.Size((*(1 for _ in slot.index), *slot.shape))
        number = number_of[slot.key] = number_of.get(slot.key, -1) + 1
        index = MetadataIndex(slot.key, offsets, number)
        slot_at[index] = slot
        items.append(
            WriteItem(
                index,
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    ChunkStorageMetadata(offsets, sizes),
                    TensorProperties(dtype=torch.bfloat16),
                    torch.Size(slot.global_shape),
                ),
            )
        )

    class Planner(dcp.SavePlanner):
        def set_up_planner(self, state_dict, storage_meta=None, is_coordinator=False) -> None:
            pass

        def create_local_plan(self):
            return dcp.SavePlan(items)

        def create_global_plan(self, all_plans):
            return create_default_global_save_plan(all_plans)

        def finish_plan(self, new_plan):
            return new_plan

        def resolve_data(self, item):
            slot = slot_at[item.index]
            pieces = slot.from_hf([reader.read(name) for name in slot.hf_names])
            return torch.cat(pieces).reshape(item.tensor_data.chunk.sizes)

    dcp.save({}, storage_writer=dcp.FileSystemWriter(target), planner=Planner(), no_dist=True)


READERS = {"ours": _our_reader, "torch's": _their_reader}
TASKS = {"open": _open, "slice": _slice, "read": _read}
WRITERS = {"ours": _our_write, "torch's": _their_write}


def _one(task: str, who: str, source: Path, target: Path) -> None:
    """The work of one of the processes that are measured."""
    if task == "torch alone":
        import torch  # noqa: F401
    elif task == "write":
        WRITERS[who](source, target)
    else:
        TASKS[task](READERS[who], source, target)


def _measured(task: str, who: str, source: Path, target: Path, repeat: int) -> Run:
    runs = []
    for number in range(repeat):
        set_cache([source], cold=False)
        runs.append(
            run(
                [
                    sys.executable,
                    "-m",
                    "benchmarks.torch_dist",
                    "--one",
                    task,
                    who,
                    str(source),
                    str(target / f"{task}-{who}-{number}"),
                ]
            )
        )
    middle = statistics.median
    return Run(
        middle(r.seconds for r in runs),
        middle(r.cpu_seconds for r in runs),
        int(middle(r.peak_anonymous for r in runs)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=0.5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        task, who, source, target = args.one
        return _one(task, who, Path(source), Path(target))
    table = Table("", "who", "CPU s", "CPU s beyond torch's start", "peak MiB", box=None)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_hf_folder(folder / "hf", model_of_size(args.gib))
        run(
            [
                sys.executable,
                "-m",
                "megatron_bar",
                "import",
                str(folder / "hf"),
                str(folder / "checkpoint"),
            ]
        )
        console.print(f"{size_of(folder / 'checkpoint') / 2**30:.2f} GiB")
        alone = _measured("torch alone", "-", folder / "hf", folder, args.repeat)
        for task in (*TASKS, "write"):
            source = folder / ("hf" if task == "write" else "checkpoint")
            for who in READERS:
                found = _measured(task, who, source, folder, args.repeat)
                table.add_row(
                    task,
                    who,
                    f"{found.cpu_seconds:.2f}",
                    f"{found.cpu_seconds - alone.cpu_seconds:.2f}",
                    f"{found.peak_anonymous / 2**20:.0f}",
                )
    console.print(table)


if __name__ == "__main__":
    main()
