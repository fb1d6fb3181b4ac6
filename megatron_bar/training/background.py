"""Writing a state to disk while training goes on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from megatron_bar.checkpoints.model_io import begin_save
from megatron_bar.runtime.distributed import all_reduce_any
from megatron_bar.runtime.stopping import unheard


class BackgroundSave:
    """A state on its way into `folder`. What this rank writes is copied to the host first.

    So the state may change at once. Threads of the rank write it: a process beside it, as
    Megatron-Core has one, would outlive a rank that is killed, and import everything again. Every
    rank calls the methods alike.
    """

    def __init__(self, state: dict[str, Any], folder: Path) -> None:
        live = {
            entry.data.untyped_storage().data_ptr()
            for entry in nested_values(state)
            if isinstance(entry, (ShardedTensor, ShardedTensorFactory))
        }
        self._request, self._writer = begin_save(state, folder)
        self._thread = None
        if self._request.async_fn is not None:  # None where a rank has nothing to write
            rank, buckets, results = self._request.async_fn_args
            self._thread = threading.Thread(
                target=self._request.async_fn,
                args=(rank, _on_host(buckets, live), results),
                daemon=True,
            )
            with unheard():
                self._thread.start()

    def is_written(self) -> bool:
        """Whether all ranks have written what is theirs."""
        return not all_reduce_any(self._thread is not None and self._thread.is_alive())

    def finish(self) -> dict[str, str]:
        """Wait for this rank's part and write what belongs to the whole.

        Returns the digests of this rank's files, by name.

        Raises Megatron-Core's CheckpointException if a rank couldn't write.
        """
        if self._thread is not None:
            self._thread.join()
        for finalize in self._request.finalize_fns:
            finalize()
        return self._writer.digests


def _on_host(buckets: list[Any], live: set[int]) -> list[Any]:
    """What is to be written, with the tensors that share memory with the `live` ones copied.

    From a GPU they go into pinned memory, all at once, and one wait is enough.
    """
    pinned = torch.cuda.is_available()

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in live:
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)
        return host.copy_(tensor, non_blocking=True)

    staged = [
        (path, name, (objects, [(item, copied(tensor)) for item, tensor in tensors]))
        for path, name, (objects, tensors) in buckets
    ]
    torch.cuda.synchronize()
    return staged
