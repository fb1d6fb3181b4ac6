"""Answers a minute of each verifier, on real problems: right, wrong and senseless answers.

    python -m benchmarks.verifiers DATA [--every 10]

DATA is the folder of real data that tests use. The answers to every tenth problem are those of
tests/verifiers/real_data.py, right and spoilt ones, and one of hostile text for every three of
them. A few answers before, whose time isn't counted, start processes. `benchmarks.sandbox` has code
that is broken or never ends.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from rich.table import Table

from benchmarks.timing import machine
from megatron_bar.runtime.console import console
from megatron_bar.verifiers.registry import VERIFIERS
from megatron_bar.verifiers.sandbox import runs_at_a_time
from tests.verifiers.real_data import Case, cases
from tests.verifiers.test_guards import hostile


def _seconds(case: Case) -> float:
    started = time.monotonic()
    VERIFIERS[case.verifier]("", case.response, case.reference)
    return time.monotonic() - started


def _with_hostile(answers: list[Case]) -> list[Case]:
    """The same, and an answer of hostile text for every third of them."""
    asked = answers[::3]
    texts = hostile("benchmark", len(asked))
    return answers + [
        case._replace(kind="hostile", response=text) for case, text in zip(asked, texts)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--every", type=int, default=10)
    options = parser.parse_args()
    found = sorted(cases(options.data, options.every), key=lambda case: case.verifier)
    table = Table("verifier", "answers", "answers a minute", "the slowest, s")
    with ThreadPoolExecutor(runs_at_a_time()) as threads:
        for verifier, group in groupby(found, key=lambda case: case.verifier):
            answers = _with_hostile(list(group))
            list(threads.map(_seconds, answers[:10]))
            started = time.monotonic()
            slowest = max(threads.map(_seconds, answers))
            rate = 60 * len(answers) / (time.monotonic() - started)
            table.add_row(verifier, str(len(answers)), f"{rate:,.0f}", f"{slowest:.2f}")
    console.print(machine(1, "wall"), markup=False)
    console.print(table)


if __name__ == "__main__":
    main()
