"""Changes that NeMo-Aligner 0.7.0 needs to be imported and run here, each with its reason.

Nothing is changed in a file. tests/rlvr asserts the list, so that an entry that is no longer needed
is noticed. What Megatron-Core itself needs on a CPU is in runtime/cpu.py.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_bar.runtime.errors import BarError

VERSION = "0.7.0"


@dataclass(frozen=True)
class Accommodation:
    """One change: its `name`, why it is needed, how it is made."""

    name: str
    reason: str
    install: Callable[[], None]


def _no_trt_llm() -> None:
    name = "nemo_aligner.utils.trt_llm"
    if importlib.util.find_spec("tensorrt_llm") is None and name not in sys.modules:
        stub = types.ModuleType(name)
        vars(stub)["GPTGenerateTRTLLM"] = type("GPTGenerateTRTLLM", (), {})
        sys.modules[name] = stub


def _gloo_rebalance() -> None:
    import nemo_aligner.utils.distributed as distributed

    def rebalance_nd_tensor(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        mine = torch.tensor([len(tensor)], device=tensor.device)
        sizes = [torch.zeros_like(mine) for _ in range(group.size())]
        dist.all_gather(sizes, mine, group=group)
        shape = (int(max(sizes)), *tensor.shape[1:])
        padded = tensor.new_zeros(shape)
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[: int(size)] for part, size in zip(parts, sizes)])

    distributed.rebalance_nd_tensor = rebalance_nd_tensor


def _no_second_bar() -> None:
    import nemo_aligner.algorithms.reinforce as reinforce

    reinforce.tqdm = functools.partial(reinforce.tqdm, disable=True)


ACCOMMODATIONS: tuple[Accommodation, ...] = (
    Accommodation(
        "no_trt_llm",
        "every actor imports TensorRT-LLM, which is neither installed nor used",
        _no_trt_llm,
    ),
    Accommodation(
        "gloo_rebalance",
        "rebalance_nd_tensor gathers a tensor without dimensions, which gloo refuses",
        _gloo_rebalance,
    ),
    Accommodation(
        "no_second_bar",
        "the trainer draws a bar of its own, with every number behind it, beside ours",
        _no_second_bar,
    ),
)

_installed: list[str] = []


def install() -> tuple[str, ...]:
    """Make the changes and import the trainer, once a process and before `process_groups`.

    NeMo compiles functions with torch.jit as it is imported, which the CPU's stand-ins for torch's
    factories (runtime/cpu.py) would stop. Returns the names of the changes.

    Raises BarError where NeMo-Aligner is missing or another version.
    """
    if _installed:
        return tuple(_installed)
    try:
        version = importlib.metadata.version("nemo_aligner")
    except importlib.metadata.PackageNotFoundError:
        raise BarError(
            "the rlvr stage needs NeMo-Aligner; install it with: pip install "
            "'megatron-bar[nemo-aligner]'"
        ) from None
    if version != VERSION:
        raise BarError(
            f"the rlvr stage is made for nemo-aligner {VERSION}, and {version} is "
            f"installed; pip install nemo-aligner=={VERSION}"
        )
    warnings.filterwarnings("ignore", module=r"(nemo|pydub|lightning|pytorch_lightning)\b")
    logging.getLogger("nv_one_logger").setLevel(logging.ERROR)
    for accommodation in ACCOMMODATIONS:
        accommodation.install()
        _installed.append(accommodation.name)
    return tuple(_installed)
