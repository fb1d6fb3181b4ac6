"""Micro-batches on their way to a GPU: made and copied while others are computed."""

from __future__ import annotations

import concurrent.futures
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

import torch

from megatron_bar.data.batch import Batch

_ALIGNED = 16  # bytes, at which any type may begin
_T = TypeVar("_T")


def on_device(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches on this process's device, in their order.

    On a GPU each is one copy, from pinned memory, on a stream of its own, while the one before is
    computed; nothing waits on the host.
    """
    if not torch.cuda.is_available():
        yield from batches
        return
    stream = torch.cuda.Stream()
    sent: tuple[Batch, torch.Tensor, torch.cuda.Event] | None = None
    for batch in batches:
        coming = _send(batch, stream)
        if sent is not None:
            yield _arrived(*sent)
        sent = coming
    if sent is not None:
        yield _arrived(*sent)


def _send(batch: Batch, stream: torch.cuda.Stream) -> tuple[Batch, torch.Tensor, torch.cuda.Event]:
    with torch.cuda.stream(stream):
        tensors, buffer = copied_at_once(
            batch.tensors(), torch.device("cuda", torch.cuda.current_device()), pin=True
        )
        return batch.with_tensors(tensors), buffer, stream.record_event()


def _arrived(batch: Batch, buffer: torch.Tensor, event: torch.cuda.Event) -> Batch:
    now = torch.cuda.current_stream()
    now.wait_event(event)
    buffer.record_stream(now)  # or its memory could be given away while it is read
    return batch


def copied_at_once(
    tensors: Mapping[str, torch.Tensor], device: torch.device, pin: bool = False
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The tensors on `device`, views of one buffer, which comes second; by a single copy."""
    starts, size = {}, 0
    for name, tensor in tensors.items():
        starts[name] = size
        size += math.ceil(tensor.nbytes / _ALIGNED) * _ALIGNED

    def views(buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            name: buffer[starts[name] : starts[name] + tensor.nbytes]
            .view(tensor.dtype)
            .view(tensor.shape)
            for name, tensor in tensors.items()
        }

    host = torch.empty(size, dtype=torch.uint8, pin_memory=pin)
    for name, view in views(host).items():
        view.copy_(tensors[name])
    buffer = host.to(device, non_blocking=True)
    return views(buffer), buffer


class MadeAhead(Generic[_T]):
    """The things that `make` makes of whole numbers, in their order, the next while one is in use.

    In a thread, on a machine with a GPU. A CPU has no time to spare, so there it is made when it is
    asked for.
    """

    def __init__(self, make: Callable[[int], _T], last: int) -> None:
        self.make, self.last = make, last
        self._thread = None
        self._next: tuple[int, concurrent.futures.Future[_T]] | None = None
        if torch.cuda.is_available():
            self._thread = concurrent.futures.ThreadPoolExecutor(1, "made-ahead")

    def take(self, number: int) -> _T:
        """Return what belongs to `number`. Raises what `make` raised."""
        if self._thread is None:
            return self.make(number)
        made = self._next
        found = made[1].result() if made and made[0] == number else self.make(number)
        self._next = None
        if number < self.last:
            self._next = number + 1, self._thread.submit(self.make, number + 1)
        return found

    def close(self) -> None:
        """Wait for what is being made, which nobody wants any more."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
