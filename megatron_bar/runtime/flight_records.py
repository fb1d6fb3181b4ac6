"""Ask torch's flight recorder who holds up the others in a hang.

Over NCCL a rank waits wherever it next asks its GPU for a number, so that its place in the program
tells little. The recorder numbers what a rank asks of each of its groups: the rank that hasn't come
to the number in which others wait holds them up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

# What a record's path begins with, by the names that versions of torch have for it; a rank follows.
_PATHS = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")


@dataclass(frozen=True)
class InGroup:
    """The last collectives of a rank in a group. They are counted from 1."""

    group: str  # what it is for
    last: int  # the last collective that the rank has asked for
    name: str  # its kind, as torch names it
    waits: int | None  # the first one that isn't done; None where all are
    waits_name: str


def write_record(rank: int, seconds: float) -> dict[str, InGroup] | None:
    """Write the rank's record where the environment says, and return what it says of the groups.

    None where nothing is recorded, or where torch doesn't answer within `seconds`.
    """
    found: list[dict[str, InGroup]] = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # the hang is to be told, whatever becomes of this
            record = _record()
            found.append(read_record(record))
            if path := next((os.environ[name] for name in _PATHS if os.environ.get(name)), None):
                with open(f"{path}{rank}", "wb") as file:
                    file.write(record)

    # It may wait for what hangs.
    asking = threading.Thread(target=ask, daemon=True, name="flight record")
    asking.start()
    asking.join(seconds)
    return found[0] if found and found[0] else None


def _record() -> bytes:
    over_nccl = dist.get_backend() == "nccl"
    return getattr(
        torch._C._distributed_c10d, "_dump_nccl_trace" if over_nccl else "_dump_fr_trace"
    )()


def read_record(record: bytes) -> dict[str, InGroup]:
    """Return a rank's last collectives by its groups' names, which are the same on all ranks."""
    told: dict[str, Any] = pickle.loads(record)
    entries = sorted(told["entries"], key=lambda entry: entry["record_id"])
    groups: dict[str, InGroup] = {}
    if not entries or entries[0]["record_id"] == 0:  # else some were written over by later ones
        for name, config in told["pg_config"].items():
            if name:  # over gloo none is told
                groups[name] = InGroup(config["desc"], 0, "", None, "")
    for entry in entries:
        name, purpose = entry["process_group"]
        number, kind = entry["collective_seq_id"], entry["profiling_name"]
        own = groups.get(name, InGroup(purpose, 0, "", None, ""))
        if not entry["is_p2p"]:  # what two ranks send each other has no number of its own
            own = dataclasses.replace(own, last=number, name=kind)
        if own.waits is None and not (entry["retired"] or entry["state"] == "completed"):
            own = dataclasses.replace(own, waits=number, waits_name=kind)
        groups[name] = own
    return groups


def behind_in_group(ranks: Mapping[int, Mapping[str, InGroup]]) -> dict[int, str]:
    """The ranks for which others wait in a group, and of each where, as the end of a sentence.

    Not those that wait in another group themselves: they are held up, too.
    """
    found: dict[int, str] = {}
    for rank, groups in ranks.items():
        if any(of.waits is not None for of in groups.values()):
            continue
        for name, own in groups.items():
            others = [groups[name] for groups in ranks.values() if name in groups]
            waits = [of for of in others if of.waits is not None and of.waits > own.last]
            if waits:
                came = f"number {own.last}, {own.name}" if own.last else "none"
                found[rank] = (
                    f"the last collective of {own.group} that it came to is {came}, and "
                    f"others wait in number {waits[0].waits}, {waits[0].waits_name}"
                )
                break
    return found
