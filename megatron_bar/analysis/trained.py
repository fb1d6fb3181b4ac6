"""Groups of parameters that each stage trained, and those that it froze."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from megatron_bar.models.config import ModelConfig
from megatron_bar.runtime.errors import BarError
from megatron_bar.training.groups import group_sizes
from megatron_bar.training.metrics import read_metrics

# The anchor's FFN stands alone; that of a dense model and those of the domains share a column.
_ANCHOR, _FFN = "anchor FFN", "FFN"
_ORDER = ["embeddings", "attention", "block norms", "final norm", "head", "router", _ANCHOR, _FFN]


@dataclass(frozen=True)
class Trained:
    """One stage; `opened` holds the open parameters of each column, None where it has no such."""

    stage: str
    steps: int
    tokens: int | None  # that carried loss; in RLVR those that were generated
    tokens_per_second: float | None  # in the median step
    ranks_waiting_share: float | None  # of ranks for the slowest, in the median step
    trainable: int
    frozen: int
    opened: tuple[int | None, ...]

    @property
    def share(self) -> float:
        return self.trainable / max(self.trainable + self.frozen, 1)


def trained_stages(run: Path, stages: Sequence[dict[str, Any]]) -> tuple[list[str], list[Trained]]:
    """The columns, and each stage that trained, in order."""
    sizes = {
        stage["stage"]: _sizes(Path(run) / stage["stage"] / "checkpoint")
        for stage in stages
        if "trainable" in stage
    }
    used = {_column(group) for groups in sizes.values() for group in groups}
    columns = [column for column in _ORDER if column in used]
    rows = []
    for stage in stages:
        if "trainable" not in stage:
            continue
        groups = sizes[stage["stage"]]
        # A stage that trains a model from scratch opens all and doesn't list it.
        opened = set(stage.get("open_groups") or groups)
        by_column: dict[str, int] = {}
        for group, size in groups.items():
            column = _column(group)
            by_column[column] = by_column.get(column, 0) + size * (group in opened)
        metrics = read_metrics(Path(run) / stage["stage"])
        rows.append(
            Trained(
                stage["stage"],
                stage.get("steps", 0),
                stage.get("tokens", _generated(metrics, stage)),
                _median(metrics, "tokens_per_second"),
                _median(metrics, "ranks_waiting_share"),
                stage["trainable"],
                stage["frozen"],
                tuple(by_column.get(column) for column in columns),
            )
        )
    return columns, rows


def _median(metrics: Sequence[dict[str, Any]], name: str) -> float | None:
    found = [line[name] for line in metrics if name in line]
    return median(found) if found else None


def _generated(metrics: Sequence[dict[str, Any]], stage: dict[str, Any]) -> int | None:
    """Tokens of all answers that RLVR sampled, None of other stages."""
    lengths = [line["response_length"] for line in metrics if "response_length" in line]
    settings = stage.get("settings", {}).get("training", {})
    if not lengths or not {"prompts_per_step", "samples_per_prompt"} <= settings.keys():
        return None
    return round(sum(lengths) * settings["prompts_per_step"] * settings["samples_per_prompt"])


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Parameters by group, {} where the checkpoint is gone."""
    try:
        return group_sizes(ModelConfig.load(checkpoint))
    except BarError:
        return {}


def _column(group: str) -> str:
    if group == "expert.0":
        return _ANCHOR
    head = group.partition(".")[0]
    return _FFN if head in ("expert", "ffn") else head.replace("_", " ")
