"""Writing of a rank's shards by threads of the rank itself.

Megatron-Core 0.16 forks a process a file, also from a process with CUDA, NCCL and OpenMP threads,
whose locks a fork may copy while they are held. Here nothing is forked: a thread a file writes the
tensors' bytes as they lie in memory, which leaves Python to the training loop (torch.save would
hold it for whole tensors), and digests them on their way.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch
import xxhash
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from megatron_bar.checkpoints.torch_archive import ALIGNMENT, frames

_BACKEND, _VERSION = "torch_dist", 1
# A file's path, its name, and what goes into it: objects, of which there are none, and tensors.
_Bucket = tuple[str, str, tuple[list[Any], list[tuple[WriteItem, torch.Tensor]]]]


class ShardWriter(TorchDistSaveShardedStrategy):
    """Megatron-Core's way to save, but for the writing itself; made anew for each save.

    `digests` are those of this rank's files, by name, once they are written.
    """

    def __init__(self) -> None:
        super().__init__(_BACKEND, _VERSION)
        self.digests: dict[str, str] = {}
        # Else Megatron-Core starts a process that shares a queue among those it forks.
        filesystem_async._results_queue = queue.Queue()

    def _get_save_and_finalize_callbacks(self, *args: Any) -> AsyncRequest:
        request = super()._get_save_and_finalize_callbacks(*args)
        return request if request.async_fn is None else request._replace(async_fn=self._write)

    def _write(self, rank: int, buckets: Sequence[_Bucket], results: queue.Queue) -> None:
        """Write a rank's files. Puts the results by file, or what went wrong, into `results`."""
        try:
            with ThreadPoolExecutor(len(buckets)) as threads:
                written = dict(enumerate(threads.map(self._write_file, buckets)))
        except Exception as error:
            results.put(error)
        else:
            results.put(written)

    def _write_file(self, bucket: _Bucket) -> list[WriteResult]:
        path, name, (_, tensors) = bucket
        digest, written = xxhash.xxh3_128(), []
        with open(path, "wb") as file:
            for item, tensor in tensors:
                _write_all(file, digest.update, bytes(-file.tell() % ALIGNMENT))
                start = file.tell()
                before, after = frames(tensor.shape, tensor.dtype)
                data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
                for part in (before, data, after):
                    _write_all(file, digest.update, part)
                length = file.tell() - start
                written.append(WriteResult(item.index, length, _StorageInfo(name, start, length)))
            file.flush()
            os.fsync(file.fileno())
        self.digests[Path(path).name] = digest.hexdigest()
        return written


def _write_all(file: IO[bytes], digest: Callable[[Any], None], data: Any) -> None:
    file.write(data)
    digest(data)
