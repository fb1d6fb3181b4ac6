"""What honest code may rely on, here and on machines that offer the sandbox less."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from megatron_bar.runtime.stopping import STOP_SIGNALS
from megatron_bar.verifiers.sandbox import Limits, Sandbox


@pytest.fixture(scope="module")
def sandbox():
    sandbox = Sandbox(workers=2)
    yield sandbox
    sandbox.close()


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio\nasync def g(n): return n\ndef f(n): return asyncio.run(g(n))",
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def f(n):\n    with ThreadPoolExecutor(4) as pool: return sum(pool.map(int, [n - 1, 1]))",
        "import tempfile\ndef f(n):\n    with tempfile.TemporaryFile('w+') as file:\n"
        "        file.write(str(n)); file.seek(0); return int(file.read())",
        "from dataclasses import dataclass\n@dataclass\nclass C:\n    n: int\n"
        "def f(n): return C(n).n",
        "import sys\nsys.setrecursionlimit(50_000)\n"
        "def f(n, d=20_000): return f(n, d - 1) if d else n",
        "print('noise')\nimport sys\nsys.stderr.write('noise')\ndef f(n): print(n); return n",
        "def f(n): return (lambda: n)()\nif __name__ == '__main__': input()",
    ],
)
def test_honest_code_runs(sandbox, source):
    assert sandbox.run_tests(source, ["assert f(7) == 7"], ["f"]) == [True]


def test_results_keep_apart_and_in_order(sandbox):
    def run(n):
        return sandbox.run_tests(
            f"def f(x): return x + {n}", [f"assert f(1) == {n + 1}", f"assert f(1) == {n}"], ["f"]
        )

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(run, range(40))) == [[True, False]] * 40


def test_the_order_of_sets_is_the_same_each_time():
    """A reward that hangs on it would make a resumed run differ."""
    program = "print({str(n) for n in range(50)})"
    outputs = set()
    for _ in range(2):
        sandbox = Sandbox(workers=1)
        outputs.add(sandbox.run_program(program, "").stdout)
        sandbox.close()
    assert len(outputs) == 1


@pytest.mark.slow
def test_tests_that_ran_before_the_time_was_up_count(sandbox):
    source = "def f(n):\n    while n > 1: pass\n    return n"
    started = time.monotonic()
    passed = sandbox.run_tests(
        source,
        ["assert f(1) == 1", "assert f(2) == 2", "assert f(1) == 1"],
        ["f"],
        limits=Limits(cpu=1.0),
    )
    assert passed == [True, False, False]
    assert time.monotonic() - started < 3


def test_stop_signals_are_not_for_its_processes():
    """Given to all processes of a run, they would cost the answer being judged its reward."""
    sandbox = Sandbox(workers=1)
    sandbox.describe()  # starts it
    process = sandbox._zygote._process
    for number in STOP_SIGNALS:
        process.send_signal(number)
    assert sandbox.run_tests("def f(n): return n", ["assert f(1) == 1"], ["f"]) == [True]
    assert sandbox._zygote._process is process
    sandbox.close()


def test_a_program_fails_with_an_error_or_a_code(sandbox):
    assert sandbox.run_program("print(input()[::-1])", "abc").stdout == "cba\n"
    for source, finished in (
        ("import sys; sys.exit()", True),
        ("import sys; sys.exit(3)", False),
        ("1 / 0", False),
        ("def", False),
    ):
        assert sandbox.run_program(source, "").finished is finished


_WITHOUT_NAMESPACES = """
    from megatron_bar.verifiers.sandbox import Sandbox
    sandbox = Sandbox(workers=1)
    print(sandbox.describe())
    print(sandbox.run_tests("import heapq\\ndef f(n): return n", ["assert f(1) == 1"], ["f"]))
    print(sandbox.run_program("open('/etc/passwd')", "").finished)
    print(sandbox.run_program("open('/tmp/x', 'w')", "").finished)
    print(sandbox.run_program("import os; os.listdir('/')", "").finished)
    sandbox.close()
"""


@pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("setpriv"),
    reason="only root can take a capability from a process, with setpriv",
)
def test_without_namespaces_no_file_can_be_opened():
    done = subprocess.run(
        [
            "setpriv",
            "--bounding-set",
            "-sys_admin",
            sys.executable,
            "-c",
            textwrap.dedent(_WITHOUT_NAMESPACES),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    said, *results = done.stdout.splitlines()
    assert "no files at all" in said
    assert "namespaces can't be had here" in said
    assert results == ["[True]", "False", "False", "False"]
