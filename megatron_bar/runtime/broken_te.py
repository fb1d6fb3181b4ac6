"""A Transformer Engine that is installed and can't be loaded: from then on it is absent.

Its libraries may fit neither torch nor the driver, or there is no driver, and it raises what comes:
OSError, RuntimeError, ImportError. Megatron-Core does without it only where it is missing
altogether, and ends with a traceback otherwise.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

NAME = "transformer_engine"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds this one package, as Python would, and has its errors say that there is none."""

    fault: str | None = None

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != NAME:
            return None
        if self.fault is not None:
            raise ModuleNotFoundError(self.fault, name=NAME)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any, finder: _Finder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self._loader.exec_module(module)
            importlib.import_module(f"{NAME}.pytorch")
        except Exception as error:
            self._finder.fault = " ".join(str(error).split()) or type(error).__name__
            raise ModuleNotFoundError(self._finder.fault, name=NAME) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


_finder = _Finder()


def install() -> None:
    """See to it that Transformer Engine is found in this way, whoever imports it."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def fault() -> str | None:
    """The reason why it couldn't be loaded; None if it was, or if nobody has tried."""
    return _finder.fault
