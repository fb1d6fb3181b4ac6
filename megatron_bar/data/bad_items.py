"""Items that can't be used: the first one ends the work, or all are left out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_bar.recipe.training import Source
from megatron_bar.runtime.console import say
from megatron_bar.runtime.distributed import of_all_ranks
from megatron_bar.runtime.errors import BarError, MachineError, VerifierFailed
from megatron_bar.runtime.files import write_json_lines

STOP, SKIP = "stop", "skip"
LEFT_OUT = "left_out.jsonl"  # a file with a line for each item that was left out


@dataclass
class BadItems:
    """The items that a source's `on_bad_item: skip` left out, by number among those drawn."""

    skip: bool
    listed: dict[int, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Source) -> BadItems:
        return cls(source.on_bad_item == SKIP)

    def add(self, item: int, where: str, error: BarError) -> None:
        """Leave the item out. Raises BarError with its place, if that isn't wanted."""
        reason = str(error).removeprefix(f"{where}: ")
        if not self.skip:
            raise BarError(f"{where}: {reason}")
        self.listed[item] = {"item": item, "where": where, "reason": reason}

    @contextlib.contextmanager
    def caught(self, item: int, where: str) -> Iterator[None]:
        """Leave the item out if the block raises BarError for what is wrong with it."""
        try:
            yield
        except (MachineError, VerifierFailed):
            raise
        except BarError as error:
            self.add(item, where, error)


def describe_left_out(source: str, listed: Sequence[dict[str, Any]]) -> str:
    """One line on the items of a source that were left out."""
    first = listed[0]
    items = "1 bad item was" if len(listed) == 1 else f"{len(listed)} bad items were"
    return f"{source}: {items} left out, such as {first['where']}: {first['reason']}"


class LeftOut(dict[str, BadItems]):
    """Bad items of several sources, by the name of each."""

    def of(self, name: str, source: Source) -> BadItems:
        return self.setdefault(name, BadItems.of(source))

    def lines(self) -> dict[str, str]:
        """A line on each source of which items were left out."""
        return {
            name: describe_left_out(name, list(bad.listed.values()))
            for name, bad in self.items()
            if bad.listed
        }

    def gather(self) -> None:
        """Take in what was left out on other ranks too. All ranks call this."""
        for others in of_all_ranks(self):
            for name, bad in others.items():
                self.setdefault(name, bad).listed.update(bad.listed)

    def record(self, folder: Path) -> dict[str, int]:
        """Say what was left out and list it in a file; returns how many items of which source.

        Called by one rank. Without such items there is no file.
        """
        lines = self.lines()
        for line in lines.values():
            say(f"{line}; all are listed in {folder / LEFT_OUT}")
        if lines:
            write_json_lines(
                folder / LEFT_OUT,
                (
                    {"source": name, **entry}
                    for name in lines
                    for entry in self[name].listed.values()
                ),
            )
        return {name: len(self[name].listed) for name in lines}
