"""Faults of a recipe, found all at once and reported a line each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from megatron_bar.runtime.console import warn
from megatron_bar.runtime.errors import BarError

_NAMED = 3  # of the places with one fault


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. Its text is a line."""

    what: str
    where: tuple[str, ...] = ()  # the stages or keys that it is wrong with
    # What is wrong is that something isn't on this machine; it may be where the recipe will run.
    absent: bool = False

    def __str__(self) -> str:
        if not self.where:
            return self.what
        first, *others = self.where
        likewise = ", ".join(others[:_NAMED]) + (
            f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        )
        return f"{first}: {self.what}" + (f" (so in {likewise})" if others else "")


class Faults(list[Fault]):
    """Faults in the order they are found; one that several stages have is one fault."""

    def add(self, what: str, where: str = "", absent: bool = False) -> None:
        """`what` may be several lines, which are a fault each."""
        for line in what.splitlines():
            places = (where,) if where else ()
            for i, fault in enumerate(self):
                if (fault.what, fault.absent) == (line, absent):
                    new = tuple(place for place in places if place not in fault.where)
                    self[i] = Fault(line, fault.where + new, absent)
                    break
            else:
                self.append(Fault(line, places, absent))

    @contextlib.contextmanager
    def of(self, where: str = "", absent: bool = False) -> Iterator[None]:
        """An error inside is a fault of `where`; the block ends there."""
        try:
            yield
        except BarError as error:
            self.add(str(error), where, absent)


def require(faults: Iterable[Fault]) -> None:
    """Raise BarError with a line for each of `faults`, if there are any."""
    if lines := [str(fault) for fault in faults]:
        raise BarError("\n".join(lines))


def wherever(faults: Iterable[Fault]) -> list[Fault]:
    """Faults that are faults on any machine: without what isn't on this one."""
    return [fault for fault in faults if not fault.absent]


def tell_absent(faults: Iterable[Fault]) -> None:
    """Say what isn't on this machine, beside what the command prints."""
    for fault in faults:
        if fault.absent:
            warn(f"not here: {fault}")
