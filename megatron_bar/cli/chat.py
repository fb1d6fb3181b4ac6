"""`chat`: a conversation in the terminal, each token in the colour of its largest expert.

Into a pipe go the answers alone; what is told beside them goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from rich.text import Text

from megatron_bar.runtime.console import console, say, warn
from megatron_bar.runtime.errors import BarError

if TYPE_CHECKING:
    from megatron_bar.api.model import Chat, Model, Reply, Word

NEW = "/new"
# Of the experts, the anchor's first: colours of the terminal's own that are read on dark and light.
_COLOURS = ("default", "cyan", "magenta", "green", "yellow", "blue", "red")


def chat(args: argparse.Namespace) -> None:
    """Load the model and talk until the input ends."""
    from megatron_bar.api.model import load

    if args.temperature < 0:
        raise BarError(f"--temperature {args.temperature}: give 0, the likeliest answer, or more")
    with contextlib.redirect_stdout(sys.stderr):
        model = load(args.model, chat_template=args.chat_template, dtype=args.dtype)
    with model:
        model.leave_out(*args.without)
        _Terminal(model, args).talk()


class _Terminal:
    """Reads questions and shows answers, in a terminal or through pipes."""

    def __init__(self, model: Model, args: argparse.Namespace) -> None:
        self.model, self.system = model, args.system
        self.options = {
            "max_new_tokens": args.max_new_tokens,
            "temperature": args.temperature,
            "seed": args.seed,
        }
        self.asks = sys.stdin.isatty() and sys.stdout.isatty()
        self.chat = self._begin()

    def _begin(self) -> Chat:
        return self.model.chat(self.system, **self.options)

    def talk(self) -> None:
        if self.asks:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (lets questions be edited)
            say(f"{NEW} begins anew; Ctrl-C ends an answer, Ctrl-D the chat")
        while (question := self._question()) is not None:
            if question == NEW:
                self.chat = self._begin()
            elif question:
                self._answer(question)

    def _question(self) -> str | None:
        """The next question, empty if the user thought better of it; None at the end."""
        try:
            return input("> " if self.asks else "").strip()
        except EOFError:
            if self.asks:
                print()
            return None
        except KeyboardInterrupt:
            if not self.asks:
                raise
            print()
            return ""

    def _answer(self, question: str) -> None:
        words: list[Word] = []
        ended = False
        try:
            with contextlib.closing(self.chat.stream(question)) as stream:
                for word in stream:
                    words.append(word)
                    self._show(word)
        except KeyboardInterrupt:
            if not self.asks:
                raise
            ended = True
        except BarError as error:
            if not self.asks:
                raise
            warn(f"{error}; {NEW} begins anew")
            return
        print(flush=True)
        self._tell(self.model.joined(words), ended)

    def _show(self, word: Word) -> None:
        # A terminal would obey what begins with this character, and the model may write anything.
        text = word.text.replace("\x1b", "\u241b") if self.asks else word.text
        console.print(Text(text, style=self._colour(word.token.shares)), end="")
        sys.stdout.flush()

    def _colour(self, shares: tuple[float, ...]) -> str:
        """The colour of the expert that had most; the terminal's own for a dense model."""
        most = max(range(len(shares)), key=shares.__getitem__, default=0)
        return _COLOURS[most % len(_COLOURS)]

    def _tell(self, reply: Reply, ended: bool) -> None:
        """Show what each expert had in the answer, and why it is no whole one."""
        parts = [
            Text(f"{name} {share:.0%}", style=_COLOURS[number % len(_COLOURS)])
            for number, (name, share) in enumerate(reply.shares.items())
        ]
        if ended:
            parts.append(Text("ended by Ctrl-C"))
        elif not reply.stopped:
            parts.append(Text(f"cut after {len(reply.tokens)} tokens"))
        if not parts:
            return
        line = Text("[") + Text("  ").join(parts) + Text("]")
        if self.asks:
            console.print(line)
        else:
            warn(line.plain)
