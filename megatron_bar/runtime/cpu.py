"""Megatron-Core on a CPU: every accommodation, by name, with its reason.

Megatron-Core assumes CUDA in about a hundred places. Where no CUDA device exists, `install()`
makes the smallest changes that let the unmodified library run over gloo. On CUDA none of them is
installed, but for those marked `without_te`, which an absent Transformer Engine needs anywhere.
tests/runtime/test_cpu.py asserts the list, so that a Megatron upgrade that no longer needs an entry
(or needs a new one) is noticed.
"""

# Stand-ins take the places of methods and types, which no checker can find right.
# mypy: disable-error-code="method-assign, misc, assignment, return-value"
from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

CPU = torch.device("cpu")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_FACTORIES = (
    "tensor",
    "zeros",
    "ones",
    "empty",
    "full",
    "arange",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand",
    "randn",
)


@dataclass(frozen=True)
class Accommodation:
    """One change to a library's behaviour: its `name`, why it is needed, how it is made."""

    name: str
    reason: str
    install: Callable[[], None]
    without_te: bool = False


def _is_cuda(device: object) -> bool:
    return (isinstance(device, int) and not isinstance(device, bool)) or (
        device is not None and str(device).startswith("cuda")
    )


def _current_device() -> None:
    torch.cuda.current_device = lambda: CPU
    torch.cuda.set_device = lambda device: None


def _factories() -> None:
    def on_cpu(factory: Callable) -> Callable:
        @functools.wraps(factory)
        def wrapped(*args, **kwargs):
            if "device" in kwargs and _is_cuda(kwargs["device"]):
                kwargs["device"] = CPU
            kwargs.pop("pin_memory", None)
            return factory(*args, **kwargs)

        return wrapped

    # What `with torch.device("meta")` acts on is listed on first use; it must list the originals.
    torch.utils._device._device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, on_cpu(getattr(torch, name)))


def _moves() -> None:
    original_to = torch.Tensor.to

    def to(self, *args, **kwargs):
        args = tuple(CPU if isinstance(a, (str, torch.device)) and _is_cuda(a) else a for a in args)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        return original_to(self, *args, **kwargs)

    torch.Tensor.to = to
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self


class _NoStream:
    """Stands for a CUDA stream or event: on a CPU everything is already in order."""

    def __init__(self, *args, **kwargs) -> None:
        pass

    def record_event(self, event: _NoStream | None = None) -> _NoStream:
        return event or _NoStream()

    def wait_stream(self, stream: object) -> None:
        pass

    wait_event = record = wait = wait_stream

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


def _streams() -> None:
    the_stream = _NoStream()
    torch.cuda.Stream = torch.cuda.Event = _NoStream
    torch.cuda.current_stream = torch.cuda.default_stream = lambda device=None: the_stream
    torch.cuda.stream = lambda stream: contextlib.nullcontext()
    torch.cuda.synchronize = lambda device=None: None


def _random_state() -> None:
    from megatron.core.tensor_parallel import random

    def get_state(device=None, clone: bool = False, graph_safe: bool = False):
        return torch.get_rng_state()

    def set_state(new_state, device=-1, graph_safe: bool = False):
        torch.set_rng_state(new_state)

    torch.cuda.get_rng_state = torch.cuda.random.get_rng_state = get_state
    torch.cuda.set_rng_state = torch.cuda.random.set_rng_state = set_state
    torch.cuda.manual_seed = torch.manual_seed
    random._get_cuda_rng_state = get_state
    random._set_cuda_rng_state = set_state
    # The tracker warns when "the CPU's state changed in a GPU context"; here the two are the same.
    logging.getLogger(random.__name__).addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )


def _split_sizes() -> None:
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    def to_host(tensor, as_numpy: bool = False, record_stream: bool = False):
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    for module in (moe_utils, token_dispatcher):
        module.maybe_move_tensor_to_cpu = to_host


def _tensor_type_names() -> None:
    original_type = torch.Tensor.type

    def type_(self, *args, **kwargs):
        name = original_type(self, *args, **kwargs)
        return name.replace("torch.", "torch.cuda.", 1) if isinstance(name, str) else name

    torch.Tensor.type = type_


def _memory() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most it takes; larger ones are given back
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never


def _gloo_threads() -> None:
    gloo: Any = dist.ProcessGroupGloo
    original_init = gloo.__init__
    devices: dict[int, list] = {}  # of each process, as a device's thread doesn't outlive a fork

    def init(self, store, rank: int, size: int, timeout: timedelta) -> None:
        options = gloo._Options()
        if (process := os.getpid()) not in devices:
            devices[process] = _gloo_devices()
        options._devices = devices[process]
        options._threads = 2 * len(devices[process])
        options._timeout = timeout
        original_init(self, store, rank, size, options)

    gloo.__init__ = init


def _gloo_devices() -> list:
    """Those that torch would make for a group, on the interfaces that the user names."""
    names = os.environ.get("GLOO_SOCKET_IFNAME")
    if not names:
        return [dist.ProcessGroupGloo.create_default_device()]
    return [dist.ProcessGroupGloo.create_device(interface=name) for name in names.split(",")]


def _no_te_gemm() -> None:
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None


ACCOMMODATIONS: tuple[Accommodation, ...] = (
    Accommodation(
        "current_device",
        "buffers are made on torch.cuda.current_device()",
        _current_device,
    ),
    Accommodation(
        "factories",
        "optimizer, schedules and clipping ask for device='cuda' literally, context "
        "parallelism for pinned memory",
        _factories,
    ),
    Accommodation(
        "moves",
        "batches and optimizer states are moved by .cuda() and .to('cuda')",
        _moves,
    ),
    Accommodation(
        "streams",
        "dispatcher, pipeline and data-parallel buffers use streams and events",
        _streams,
    ),
    Accommodation(
        "random_state",
        "the RNG tracker keeps CUDA generator states: keep the CPU's, so that "
        "dropout and initialization stay reproducible over tensor-parallel ranks",
        _random_state,
    ),
    Accommodation(
        "split_sizes",
        "the all-to-all dispatcher leaves split sizes as tensors when they are on "
        "the CPU already, and gloo takes lists",
        _split_sizes,
    ),
    Accommodation(
        "tensor_type_names",
        "optimizers compare Tensor.type() with torch.cuda.* names",
        _tensor_type_names,
    ),
    Accommodation(
        "memory",
        "the C library gives freed activations back to the system, whose pages then cost "
        "a fault each in every step; CUDA's allocator keeps them",
        _memory,
    ),
    Accommodation(
        "gloo_threads",
        "each of Megatron's two dozen groups has a thread that wakes a hundred times a second, 2 % "
        "of a core for a rank that does nothing; groups of a process share one",
        _gloo_threads,
    ),
    Accommodation(
        "no_te_gemm",
        "the MoE router reads te_general_gemm, undefined where Transformer Engine is "
        "absent (0.16.1)",
        _no_te_gemm,
        without_te=True,
    ),
)

_installed: list[str] = []


def install() -> tuple[str, ...]:
    """Install what this machine needs, once a process; returns the names that are in force."""
    if not _installed:
        from megatron.core.extensions.transformer_engine import HAVE_TE

        on_cpu = not torch.cuda.is_available()
        for accommodation in ACCOMMODATIONS:
            if on_cpu or (accommodation.without_te and not HAVE_TE):
                accommodation.install()
                _installed.append(accommodation.name)
    return tuple(_installed)
