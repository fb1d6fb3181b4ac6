"""Writing a state to disk while training goes on."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from megatron_bar.checkpoints.model_io import save_shards
from megatron_bar.runtime.distributed import all_reduce_any
from megatron_bar.runtime.stopping import unheard
from megatron_bar.training.saved_files import digests_of_rank


class BackgroundSave:
    """A state on its way into `folder`. It is copied to the host first, so it may change at once.

    A thread of each rank runs the request that Megatron-Core makes of it; Megatron's own callers
    run it in a copy of the process, which would outlive a rank that is killed. Every rank calls the
    methods alike.
    """

    def __init__(self, state: dict[str, Any], folder: Path) -> None:
        copied = dict_list_map_inplace(_on_host, state)
        self._request = save_shards(copied, folder, in_background=True)
        self._folder = folder
        self._digests: dict[str, str] = {}
        self._thread = None
        if self._request.async_fn is not None:  # None where a rank has nothing to write
            self._thread = threading.Thread(target=self._write, daemon=True)
            with unheard():
                self._thread.start()

    def _write(self) -> None:
        request = self._request
        request.async_fn(*request.async_fn_args, **request.async_fn_kwargs)
        self._digests = digests_of_rank(self._folder)

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
        return self._digests


def _on_host(entry: Any) -> Any:
    if isinstance(entry, (ShardedTensor, ShardedTensorFactory)):
        return dataclasses.replace(entry, data=entry.data.detach().to("cpu", copy=True))
    return entry
