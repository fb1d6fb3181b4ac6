"""Pure functions of tensors that torch.compile makes into one kernel where that pays: on a GPU.

The function itself, in plain torch, is what runs on a CPU, and the judge of what is compiled.
MEGATRON_BAR_COMPILE=0 leaves a GPU to it, too, and =1 compiles for the CPU, which takes minutes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from megatron_bar.runtime.console import say

COMPILE = "MEGATRON_BAR_COMPILE"
_VARIANTS = 64  # of a function, by widths, types and what is left out; torch's own limit is 8
_P = ParamSpec("_P")
_R = TypeVar("_R")
_failures: list[str] = []  # why nothing more is compiled in this process


def kernels_in_use() -> str:
    """The kernels that elementwise work runs on, and why they are the slower ones if they are."""
    if _failures:
        return f"plain torch, as compiling failed: {_failures[0]}"
    if _asked_for() == "0" and torch.cuda.is_available():
        return f"plain torch, as {COMPILE} is 0"
    return "compiled" if _asked_for() == "1" or torch.cuda.is_available() else "plain torch"


@functools.cache
def _asked_for() -> str | None:
    return os.environ.get(COMPILE)


def _compiles_for(tensor: Any) -> bool:
    asked = _asked_for()
    return not _failures and (tensor.is_cuda if asked is None else asked == "1")


def fused(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile `function`, which may do nothing but compute, for any length of dimension 0.

    Its first argument is a tensor, whose device decides. Other dimensions than 0 are those of a
    model, so they are few. Where the machine can't compile (a GPU's kernels want a C compiler) one
    line says so, once, and functions run as they are.
    """

    @functools.cache
    def compiled() -> Callable[_P, _R]:
        torch._dynamo.config.recompile_limit = _VARIANTS  # this imports what takes seconds
        return torch.compile(function, fullgraph=True)

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not _compiles_for(args[0]):
            return function(*args, **kwargs)
        _let_length_vary(args)
        try:
            return compiled()(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            _failures.append(str(error).strip().splitlines()[0])
            say(f"note: kernels can't be compiled: {_failures[0]}; training is slower")
            return function(*args, **kwargs)

    return call


def _let_length_vary(value: Any) -> None:
    if isinstance(value, torch.Tensor):
        if value.dim() > 1 and value.shape[0] > 1:
            torch._dynamo.maybe_mark_dynamic(value, 0)
    elif isinstance(value, (list, tuple)):
        for each in value:
            _let_length_vary(each)
