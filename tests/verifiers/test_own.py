"""A verifier in a file of the user's own: what it may do, and what is wrong with one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from megatron_bar.data.sources import Conversation
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import BarError, VerifierFailed
from megatron_bar.verifiers.registry import scorer, verifier_for

_MINE = """
    import os
    from helper import VALUE  # beside it
    from megatron_bar.runtime.errors import BarError

    SECONDS = 1

    def score(prompt, response, reference):
        if reference is None:
            raise BarError("there is no reference")
        if response == "endless":
            while True:
                pass
        if response == "dies":
            os._exit(0)
        if response == "exits":
            raise SystemExit(3)
        if response == "text":
            return "1"
        if response == "fails":
            return reference["none"]
        return VALUE if response == reference else 0
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(textwrap.dedent(text))
    return path


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "helper.py").write_text("VALUE = 0.5\n")
    return write(folder, _MINE)


def score(path: Path, response: str, reference: object = "2") -> float:
    item = Conversation(
        [{"role": "user", "content": "1 + 1?"}], "sums", {"answer": reference}, "sums.jsonl:1"
    )
    return scorer(Source(path="x", verifier=f"{path}:score"), item)(response)


@pytest.mark.timeout(60)
def test_it_scores_answers_of_any_length(mine):
    assert score(mine, "2") == 0.5 and score(mine, "3") == 0
    long = "\N{SNOWMAN}\ud83d" * 200_000
    assert score(mine, long) == 0 and score(mine, "x", {"rows": [long[::2]]}) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "response, reason",
    [
        ("endless", "no score within 1 s"),
        ("dies", "its process ended without a score"),
        ("exits", r"SystemExit: 3 \(mine.py:17\)"),
        ("text", r"it returned '1' \(str\), and a score"),
        ("fails", r"TypeError: string indices .*\(mine.py:21\)"),
    ],
)
@pytest.mark.timeout(60)
def test_whatever_it_does_is_a_failure_of_that_answer(mine, response, reason):
    started = time.monotonic()
    with pytest.raises(
        VerifierFailed,
        match=r"^sums\.jsonl:1: verifier mine.py:score can't score "
        rf"an answer to this item of source sums: {reason}",
    ):
        score(mine, response)
    assert time.monotonic() - started < 10
    assert score(mine, "2") == 0.5


def test_it_says_that_a_reference_is_broken(tmp_path):
    path = write(
        tmp_path,
        """
        from megatron_bar.runtime.errors import BarError
        def score(prompt, response, reference):
            raise BarError(f"{reference} is no statute")
    """,
    )
    with pytest.raises(BarError, match=r"^sums\.jsonl:1: 2 is no statute$") as error:
        score(path, "x")
    assert not isinstance(error.value, VerifierFailed)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "mine.py is not a file"),
        ("def score(:", r"mine.py:1: not Python: invalid syntax"),
        (
            "import none_such_module",
            r"mine.py can't be loaded: ModuleNotFoundError: .* \(mine.py:1\)",
        ),
        ("raise SystemExit", r"mine.py can't be loaded: SystemExit"),
        ("def judge(a, b, c): pass", "mine.py has no function score; there are judge"),
        ("score = 3", "mine.py has no function score; there are none"),
        (
            "def score(answer): pass",
            r"mine.py: score\(answer\) can't be called as verifiers are: "
            r"score\(prompt, response, reference\)",
        ),
        ("SECONDS = 0\ndef score(a, b, c): pass", "SECONDS is 0; give a number of seconds above 0"),
    ],
)
@pytest.mark.timeout(60)
def test_what_is_wrong_with_a_file_is_a_line(tmp_path, text, message):
    path = tmp_path / "mine.py" if text is None else write(tmp_path, text)
    with pytest.raises(BarError, match=message) as error:
        verifier_for(Source(path="x", verifier=f"{path}:score"))
    assert len(str(error.value).splitlines()) == 1


def test_a_file_alone_is_no_verifier():
    with pytest.raises(BarError, match=r"names no function; write it as mine\.py:FUNCTION"):
        verifier_for(Source(path="x", verifier="mine.py"))


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_nothing_is_left_behind_when_the_trainer_is_killed_while_it_hangs(tmp_path):
    """The process ends itself, even where it never comes to see that nobody waits."""
    path = write(
        tmp_path,
        """
        SECONDS = 1
        def score(prompt, response, reference):
            while True:
                pass
    """,
    )
    trainer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
        from megatron_bar.verifiers import own
        score = own.load("{path}:score")
        print("loaded", flush=True)
        score("", "", "")
    """),
        ],
        stdout=subprocess.PIPE,
    )
    assert trainer.stdout.readline() == b"loaded\n"
    time.sleep(0.3)  # so that it is asked
    trainer.kill()
    trainer.communicate()
    assert running(path)
    deadline = time.monotonic() + 15
    while running(path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not running(path)


def running(path: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if str(path) in (process.info["cmdline"] or [])
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]
