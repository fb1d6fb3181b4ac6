"""`megatron-bar chat`, through pipes and in a terminal of its own."""

from __future__ import annotations

import argparse
import io
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

from megatron_bar import Word, load
from megatron_bar.cli import chat, main
from megatron_bar.generation.stream import StreamedToken

_COLOUR = re.compile(r"\x1b\[[\d;]*m")


def _piped(monkeypatch, said: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    return main(["chat", *arguments])


def test_a_pipe_gets_the_answers_alone(two_talking, monkeypatch, capsys):
    questions = ["What is 17 + 25?", "And 18 + 25?"]
    assert (
        _piped(
            monkeypatch,
            "\n".join([*questions, "", "/new", questions[0]]),
            str(two_talking),
            "--system",
            "Be short.",
            "--max-new-tokens",
            "5",
            "--temperature",
            "1",
            "--seed",
            "2",
        )
        == 0
    )
    shown = capsys.readouterr()
    with load(two_talking) as model:
        talk = model.chat(system="Be short.", max_new_tokens=5, temperature=1.0, seed=2)
        answers = [talk.ask(question).text for question in questions]
    assert shown.out == f"{answers[0]}\n{answers[1]}\n{answers[0]}\n"
    told = re.findall(
        r"^megatron-bar: \[anchor (\d+)%  expert1 (\d+)%  cut after 5 tokens\]$",
        shown.err,
        re.MULTILINE,
    )
    assert len(told) == 3 and all(99 <= int(one) + int(other) <= 101 for one, other in told)
    assert "is imported for this" in shown.err and not _COLOUR.search(shown.out + shown.err)


def test_a_model_cannot_command_the_terminal(two_talking, capsys):
    with load(two_talking) as model:
        arguments = argparse.Namespace(system=None, max_new_tokens=1, temperature=0.0, seed=0)
        terminal = chat._Terminal(model, arguments)
    capsys.readouterr()
    word = Word("\x1b]0;title\x07", StreamedToken(1, 0.0, (0.5, 0.5), False))
    for asks, shown in ((True, "\u241b]0;title"), (False, "\x1b]0;title")):
        terminal.asks = asks
        terminal._show(word)
        assert capsys.readouterr().out.startswith(shown)


def test_options_that_cannot_be_are_told_in_one_line(two_talking, monkeypatch, capsys):
    for arguments, message in (
        (["--temperature", "-1"], "--temperature -1.0: give 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0: give at least 1"),
        (["--without", "law"], "there is no expert 'law'"),
        (["--chat-template", "none"], "chat_template 'none' is unknown"),
    ):
        assert _piped(monkeypatch, "", str(two_talking), *arguments) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "imported" not in line]
        assert message in line


def test_a_question_without_an_answer_ends_a_pipe_with_status_1(two_talking, monkeypatch, capsys):
    assert _piped(monkeypatch, "how " * 600, str(two_talking)) == 1
    assert "leaves no room for an answer" in capsys.readouterr().err


# Takes the terminal that it is given for its own, which Ctrl-C comes through.
_IN_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from megatron_bar.cli import main
sys.exit(main(sys.argv[1:]))
"""


class _Terminal:
    """`megatron-bar chat` in a terminal of its own."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.seen = ""
        self._terminal, its_end = pty.openpty()
        self._chat = subprocess.Popen(
            [sys.executable, "-c", _IN_TERMINAL, "chat", *arguments],
            stdin=its_end,
            stdout=its_end,
            stderr=its_end,
            start_new_session=True,
            env={key: value for key, value in os.environ.items() if key != "NO_COLOR"}
            | {"TERM": "xterm", **environment},
        )
        os.close(its_end)

    def expect(self, pattern: str) -> str:
        """What is shown up to the first match of `pattern`, which is taken away."""
        deadline = time.monotonic() + 120
        while (match := re.search(pattern, self.seen)) is None:
            ready, _, _ = select.select([self._terminal], [], [], deadline - time.monotonic())
            assert ready, f"{pattern!r} doesn't come; there is {self.seen!r}"
            try:
                self.seen += os.read(self._terminal, 4096).decode(errors="replace")
            except OSError:  # nobody holds the other end any more
                raise AssertionError(f"it ended before {pattern!r}: {self.seen!r}") from None
        shown, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return shown

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def status(self) -> int:
        return self._chat.wait(60)

    def close(self) -> None:
        self._chat.kill()
        self._chat.wait()
        os.close(self._terminal)


@pytest.fixture(scope="module")
def terminals(two_talking):
    """One with colours and one without, which start side by side."""
    coloured = _Terminal(str(two_talking), "--temperature", "1.5", "--max-new-tokens", "400")
    plain = _Terminal(str(two_talking), "--max-new-tokens", "3", NO_COLOR="1")
    yield coloured, plain
    coloured.close()
    plain.close()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_terminal_shows_colours_and_keeps_the_chat_when_an_answer_is_ended(terminals):
    terminal, _ = terminals
    terminal.expect(r"/new begins anew; Ctrl-C ends an answer, Ctrl-D the chat\r\n")
    terminal.expect("> ")
    terminal.type("What is 17 + 25?\n")
    terminal.expect(r"25\?\r\n[^\r]{3}")  # the answer has begun
    terminal.type("\x03")
    told = terminal.expect(r"ended by Ctrl-C\]")
    assert "\x1b[36mexpert1" in told  # cyan
    assert re.search(r"\[anchor \d+%  expert1 \d+%  ended", _COLOUR.sub("", told))
    terminal.expect("> ")
    time.sleep(0.5)  # Python hears it a moment after the question is shown
    terminal.type("\x03")  # at the question it ends nothing
    terminal.expect("> ")
    terminal.type("how " * 600 + "\n")
    terminal.expect("leaves no room for an answer.*; /new begins anew")
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.status() == 0


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_terminal_without_colours_shows_none(terminals):
    _, terminal = terminals
    terminal.expect("> ")
    terminal.type("What is 17 + 25?\n")
    shown = terminal.expect(r"tokens\]")
    assert "36m" not in shown and "cut after 3 tokens" in shown
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.status() == 0
