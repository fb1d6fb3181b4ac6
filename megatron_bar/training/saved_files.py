"""Digests of a saved state's files, by which a later start knows whether it is what was written.

Each rank digests what it writes, and at a start its share of all files, so that no rank waits
for another that reads the whole.
"""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from megatron_bar.runtime.distributed import first_of_ranks, is_main, of_all_ranks
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.files import file_digest, read_json, write_json

DIGESTS = "digests.json"


def write_digests(folder: Path, own: dict[str, str]) -> None:
    """Write the digests of all files into `folder`; `own` are this rank's. All ranks call this."""
    everyones = of_all_ranks(own)
    if is_main():
        digests = {name: digest for each in everyones for name, digest in each.items()}
        digests |= {
            path.name: file_digest(path)
            for path in folder.iterdir()
            if path.is_file() and path.name not in digests
        }
        write_json(folder / DIGESTS, digests)


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with a state, the same on every rank, or None. All ranks call this.

    Nothing is found wrong with one that has no digests.
    """
    try:
        fault = _damage_of_share(folder)
    except (OSError, BarError) as error:
        fault = " ".join(str(error).split())
    return first_of_ranks(fault)


def has_digests(folder: Path) -> bool:
    """Whether damage could be found in a state; those of earlier versions have no digests."""
    return (folder / DIGESTS).is_file()


def _damage_of_share(folder: Path) -> str | None:
    if not has_digests(folder):
        return None
    digests = read_json(folder / DIGESTS)
    for name in sorted(digests)[dist.get_rank() :: dist.get_world_size()]:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if file_digest(folder / name) != digests[name]:
            return f"{name} isn't what was written"
    return None
