"""Stages that were cut short and go on in another way than they began: what differs, what follows.

What decides the result isn't looked at here: where that has changed a stage starts anew
(`provenance`). Layouts, versions and a few settings don't decide it, but for rounding.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_bar.runtime.known_versions import installed
from megatron_bar.stages.stage import Stage
from megatron_bar.training.saved import saved_steps

_PACKAGES = ("megatron-bar", "megatron-core", "torch", "transformers", "transformer-engine")


def manner(stage: Stage) -> dict[str, Any]:
    """The way in which `stage` is computed here and now, a JSON value for its record."""
    return {
        "layout": dataclasses.asdict(stage.layout),
        "rounding": stage.rounding(),
        "versions": {"python": platform.python_version()}
        | {package: installed(package) or "not installed" for package in _PACKAGES},
    }


def differences(begun: Mapping[str, Any], stage: Stage, folder: Path) -> list[str]:
    """Lines on what differs from the way in which the state in `folder` was made, and what follows.

    There are none where no state is saved, nor where the record `begun` is of a version that
    didn't write this down.
    """
    steps, now = saved_steps(folder), manner(stage)
    if not steps or "rounding" not in begun:
        return []
    after = f"{stage.name}: the state after step {steps[-1]} is taken over"
    lines = []
    layout = {f"layout.{key}": value for key, value in begun["layout"].items()}
    layout_now = {f"layout.{key}": value for key, value in now["layout"].items()}
    if changed := list(_changed(layout | begun["rounding"], layout_now | now["rounding"])):
        lines.append(
            f"{after} with {'; '.join(changed)}: the same batches in the same order, and "
            "the same numbers but for rounding"
        )
    if changed := list(_changed(begun["versions"], now["versions"])):
        lines.append(
            f"{after} by other versions ({'; '.join(changed)}): frozen parameters keep "
            "their bits, the numbers may be rounded otherwise; for the same bits go on "
            "with what it was begun with"
        )
    return lines


def _changed(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*now, *was]):
        if was.get(key) != now.get(key):
            yield f"{key} {now.get(key)}, was {was.get(key)}"
