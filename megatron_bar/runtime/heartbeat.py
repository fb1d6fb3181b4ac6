"""Notice a rank that hangs, say which and where, and end.

A rank that waits in a collective for one that never comes waits until the collective times out, and
then blames the collective. Here a thread of every rank watches its main thread's progress and
leaves signs of life where all can see them, so that the one at fault is named: the one that has
got on less far than the others, or is in another place. How a rank waits says little of it: over
NCCL it waits wherever it next asks its GPU for a number. Where torch's flight recorder runs, it is
asked before the end, and knows best (`flight_records`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from megatron_bar.runtime.beats import beat, done, seconds_still
from megatron_bar.runtime.flight_records import InGroup, behind_in_group, write_record
from megatron_bar.runtime.ranks import own_host

HANG_MINUTES = "MEGATRON_BAR_HANG_MINUTES"
HUNG = 70  # exit status
_SIGNS_SECONDS = 10.0
RECORDS_SECONDS = 20.0  # for those of other ranks
_SIGNS, _BLAMED, _RECORD = "heartbeat", "blamed", "record"  # in the store


def hang_minutes() -> float | None:
    """Minutes that a rank may go without progress; None, where nobody has said, is for ever."""
    value = os.environ.get(HANG_MINUTES)
    return float(value) if value else None


@contextlib.contextmanager
def watched(what: str) -> Iterator[None]:
    """End this process with a clear message if no rank makes progress in the block for too long.

    How long is said by `hang_minutes`. A rank may well wait for another that works.
    """
    minutes = hang_minutes()
    if minutes is None:
        yield
        return
    beat()
    watch = _Watchdog(what, minutes * 60)
    watch.start()
    try:
        yield
    finally:
        watch.stopped.set()
        # Ended by the interpreter's own end amid a call of the store, it would abort the process.
        watch.join(_SIGNS_SECONDS)


@dataclass(frozen=True)
class _Sign:
    """What a rank leaves in the store: that it lives, when it last got on, and how far it is."""

    host: str
    at: float  # seconds since 1970
    beat: float
    work: str
    done: int  # units of the work
    place: str


class _Watchdog(threading.Thread):
    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.host = own_host()
        self.what = f"{what}: rank {self.rank} on {self.host}"
        self.seconds = seconds
        self.interval = min(_SIGNS_SECONDS, seconds / 10)
        self.main = threading.main_thread().ident or 0  # it has one since it started
        self.stopped = threading.Event()
        self.store: dist.Store | None = None

    def run(self) -> None:
        with contextlib.suppress(dist.DistError):  # without the store, each speaks for itself
            self.store = self._connect()
        while not self.stopped.wait(self.interval):
            self._sign()
            still = seconds_still()
            if still <= self.seconds:
                continue
            signs = self._signs()
            if any(sign and time.time() - sign.beat <= self.seconds for sign in signs.values()):
                continue  # one rank works, and this one waits for it
            known = {rank: sign for rank, sign in signs.items() if sign is not None}
            held_up_by = self._held_up_by(self._exchange_records(), known)
            silent = self._silent(known)
            self._report(still, held_up_by, silent, [rank for rank in signs if rank not in known])
            self._blame({known[rank].host for rank in [*held_up_by, *silent]})
            # Others are about to find out as well, and who started them ends them with the first.
            self.stopped.wait(2 * self.interval)
            os._exit(HUNG)

    def _connect(self) -> dist.Store | None:
        """A connection of its own to the store by which the ranks have met."""
        if self.world == 1 or "MASTER_ADDR" not in os.environ:
            return None
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=self.seconds),
        )
        return dist.PrefixStore(_SIGNS, store)

    def _sign(self) -> None:
        if self.store is None:
            return
        now = time.time()
        sign = _Sign(self.host, now, now - seconds_still(), *done(), self._place()[0])
        with contextlib.suppress(dist.DistError):
            self.store.set(str(self.rank), json.dumps(dataclasses.astuple(sign)))

    def _signs(self) -> dict[int, _Sign | None]:
        """The last sign of each rank; None of one that never gave any."""
        signs: dict[int, _Sign | None] = {}
        if self.store is not None:
            with contextlib.suppress(dist.DistError):
                for rank in range(self.world):
                    known = self.store.check([str(rank)])
                    sign = _Sign(*json.loads(self.store.get(str(rank)))) if known else None
                    signs[rank] = sign
        return signs

    def _exchange_records(self) -> dict[int, dict[str, InGroup]]:
        """What the flight recorders of all ranks say, as far as these have found out by now."""
        own = write_record(self.rank, RECORDS_SECONDS)
        if own is None or self.store is None:
            return {}
        found: dict[int, dict[str, InGroup]] = {}
        with contextlib.suppress(dist.DistError):
            groups = {name: dataclasses.astuple(of) for name, of in own.items()}
            self.store.set(f"{_RECORD}/{self.rank}", json.dumps(groups))
            keys = {f"{_RECORD}/{rank}": rank for rank in range(self.world)}
            deadline = time.monotonic() + RECORDS_SECONDS  # others are about to find out as well
            while not self.store.check([*keys]) and time.monotonic() < deadline:
                self.stopped.wait(0.5)
            there = [key for key in keys if self.store.check([key])]
            for key, told in zip(there, self.store.multi_get(there)):
                groups = json.loads(told)
                found[keys[key]] = {name: InGroup(*of) for name, of in groups.items()}
        return found

    def _held_up_by(
        self, records: Mapping[int, Mapping[str, InGroup]], known: Mapping[int, _Sign]
    ) -> dict[int, str]:
        """Ranks that hold up the others, and of each why; by records where these name any."""
        lines = {
            rank: f"rank {rank} on {known[rank].host} is behind: {why}; it is in "
            f"{known[rank].place}"
            for rank, why in behind_in_group(records).items()
            if rank in known
        }
        return lines or behind(known)

    def _blame(self, hosts: set[str]) -> None:
        """Leave in the store whose fault it seems to be, for who started the ranks."""
        if self.store is not None and hosts:
            with contextlib.suppress(dist.DistError):
                self.store.set(_BLAMED, json.dumps(sorted(hosts)))

    def _silent(self, signs: Mapping[int, _Sign]) -> dict[int, str]:
        """Ranks that give no sign of life any more, and of each a line."""
        ages = {rank: time.time() - sign.at for rank, sign in signs.items()}
        longest = max(self.seconds / 2, 3 * self.interval)
        return {
            rank: f"rank {rank} on {signs[rank].host} has given no sign of life for {age:.0f} s"
            for rank, age in ages.items()
            if age > longest
        }

    def _report(
        self,
        still: float,
        held_up_by: Mapping[int, str],
        silent: Mapping[int, str],
        unseen: Sequence[int],
    ) -> None:
        place, in_collective = self._place()
        doing = f"waits for other ranks in {place}" if in_collective else f"is in {place}"
        print(f"{self.what} has made no progress for {still:.0f} s: it {doing}", file=sys.stderr)
        never = [f"rank {rank} never gave a sign of life" for rank in unseen]
        for line in [*held_up_by.values(), *never, *silent.values()]:
            print(f"{self.what} sees that {line}", file=sys.stderr)
        sys.stderr.flush()

    def _place(self) -> tuple[str, bool]:
        """The main thread's place in the project's code, and whether it waits in a collective."""
        frames = traceback.extract_stack(sys._current_frames()[self.main])
        ours = [f for f in frames if "megatron_bar" in f.filename] or frames
        return (
            f"{ours[-1].name} ({ours[-1].filename}:{ours[-1].lineno})",
            any("torch/distributed" in frame.filename for frame in frames),
        )


def behind(signs: Mapping[int, _Sign]) -> dict[int, str]:
    """The ranks that most likely hold up the others, and of each why, as the end of a sentence.

    Where all do the same work, those that have done least of it; if all are equally far, those that
    are where fewer are. None if all are in one place, or half are in each of two.
    """
    if len({sign.work for sign in signs.values()}) != 1:
        return {}
    least, most = (of(sign.done for sign in signs.values()) for of in (min, max))
    ranks_at = Counter(sign.place for sign in signs.values())
    (crowded, crowd), *_ = ranks_at.most_common()
    found = {}
    for rank, sign in signs.items():
        named = f"rank {rank} on {sign.host}"
        if least < most and sign.done == least:
            found[rank] = (
                f"{named} is behind, at {least} of {sign.work} where others are at {most}: it "
                f"is in {sign.place}"
            )
        elif least == most and ranks_at[sign.place] < crowd:
            found[rank] = f"{named} is in {sign.place}, and {crowd} ranks are in {crowded}"
    return found


def blamed_hosts(store: dist.Store) -> list[str]:
    """The machines whose ranks held up the others, as these said in the store by which they met."""
    signs = dist.PrefixStore(_SIGNS, store)
    return json.loads(signs.get(_BLAMED)) if signs.check([_BLAMED]) else []
