"""A soak test: runs that are disturbed all the time end with the undisturbed bits.

tests/test_soak.py has a few minutes of it; the rest is started by hand.

    make soak            # an hour with a fault a minute, on this machine
    python -m tests.soak --minutes 10 --every 20 --seed 1
    python -m tests.soak --slurm        # over two nodes of a SLURM of its own
    python -m tests.soak --minutes 1 --every 15 --steps 0.1

First the recipe is run undisturbed. Then again, from nothing, while a fault strikes every so often,
each kind before any strikes again, and it is started anew as a user would; a round that ends before
the time is up is followed by one with the faults in another order. After each round all
checkpoints, the exported model and the scores are the undisturbed ones, to the bit, no stage that
was finished has been made again, nothing has said `Traceback`, and no process is left.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatron_bar.analysis.scores import load_results
from megatron_bar.runtime.files import file_digest, read_json
from megatron_bar.stages.context import DONE_FILE
from megatron_bar.training.groups import group_digests
from tests.disturbed_runs import DisturbedRun, LocalRun, SlurmRun, files_in
from tests.slurm.cluster import cluster, missing, wait_until


def finished(run: Path) -> dict[str, str]:
    """The ids of executions by stage; one that is finished keeps its id."""
    ids = {}
    for path in files_in(run):
        if path.name == DONE_FILE:
            with contextlib.suppress(Exception):  # being replaced this very moment
                ids[str(path.parent.relative_to(run))] = read_json(path)["id"]
    return ids


def result(run: Path) -> dict[str, object]:
    """All that a run is for."""
    found: dict[str, object] = {
        str(path.parent.relative_to(run)): group_digests(path.parent)
        for path in run.glob("**/checkpoint/model.json")
    }
    found |= {path.name: file_digest(path) for path in (run / "hf" / "model").glob("*.safetensors")}
    found["scores"] = _without_times(load_results(run))
    return found


def _without_times(results: Any) -> Any:
    """What evaluations found, which took other times."""
    if not isinstance(results, dict):
        return results
    return {key: _without_times(of) for key, of in results.items() if key != "seconds"}


def progress(run: Path) -> int:
    """Grows with each step that is logged and each stage that is done."""
    size = 0
    for path in files_in(run):
        if path.name in ("metrics.jsonl", DONE_FILE):
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
    return size


def disturb(
    run: DisturbedRun, every: float, chance: random.Random, at_most: float = math.inf
) -> Counter[str]:
    """Run to the end with a fault about every so many seconds; returns how often each struck.

    None strikes before there was some progress: a run that is always struck at its start never
    ends. After `at_most` of them it is left alone.
    """
    struck: Counter[str] = Counter()
    done: dict[str, str] = {}
    faults: list[str] = []
    strikes = 0
    while True:
        run.start()
        struck["starts"] += 1
        strike, before = time.monotonic() + every * chance.uniform(0.5, 1.5), progress(run.run)
        while run.is_running():
            if strikes < at_most and time.monotonic() >= strike and progress(run.run) > before:
                strikes += 1
                if not faults:
                    faults = sorted(run.faults())
                    chance.shuffle(faults)
                name = faults.pop()
                struck[name] += run.faults()[name](chance)
                strike = time.monotonic() + every * chance.uniform(0.5, 1.5)
                before = progress(run.run)
            time.sleep(0.2)
        is_done, now = run.end(), finished(run.run)
        assert done.items() <= now.items(), f"made again: {set(done.items()) - set(now.items())}"
        done = now
        if is_done:
            return struck


def undisturbed(folder: Path, steps: float) -> dict[str, object]:
    """The result of the recipe with this share of its steps, which nothing disturbs."""
    run = LocalRun(folder, "undisturbed", steps)
    run.start()
    try:
        while run.is_running():
            time.sleep(0.5)
        assert run.end(), run.log.read_text()
    finally:
        run.stop()
    return result(run.run)


def soak(
    run: DisturbedRun,
    every: float,
    seed: str,
    expected: dict[str, object],
    at_most: float = math.inf,
) -> Counter[str]:
    """Let faults, `at_most` so many, strike the run until it is done, with the result `expected`.

    Returns how often each fault struck.
    """
    try:
        struck = disturb(run, every, random.Random(seed), at_most)
    finally:
        run.stop()
    said = "".join(
        path.read_text(errors="replace") for path in [run.log, *(run.run / "logs").glob("*.txt")]
    )
    assert "Traceback" not in said, said
    found = result(run.run)
    different = {name for name in {*found, *expected} if found.get(name) != expected.get(name)}
    assert not different, f"{run.run.name} differs in {sorted(different)} after {dict(struck)}"
    return struck


@contextlib.contextmanager
def _runs(options: argparse.Namespace, folder: Path) -> Iterator[Callable[[str], DisturbedRun]]:
    if not options.slurm:
        yield lambda name: LocalRun(folder, name, options.steps)
        return
    if reason := missing():
        sys.exit(reason)
    with cluster() as slurm:
        yield lambda name: SlurmRun(folder, name, options.steps, slurm)
        wait_until("an empty queue", lambda: not slurm.jobs())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=60, help="seconds between two faults")
    parser.add_argument("--steps", type=float, default=1.0, help="share of the recipe's steps")
    parser.add_argument("--folder", type=Path, help="keeps the runs; by default a temporary one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slurm", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = options.folder or Path(temporary)
        expected, began, number = undisturbed(folder, options.steps), time.monotonic(), 0
        print(f"undisturbed: {len(expected)} results", flush=True)
        with _runs(options, folder) as make:
            while number == 0 or time.monotonic() - began < 60 * options.minutes:
                run = make(f"round-{number}")
                shutil.rmtree(run.run, ignore_errors=True)
                struck = soak(run, options.every, f"{options.seed} {number}", expected)
                print(
                    f"round {number}: equal to the bit after {dict(struck)}, "
                    f"{time.monotonic() - began:.0f} s",
                    flush=True,
                )
                number += 1


if __name__ == "__main__":
    main()
