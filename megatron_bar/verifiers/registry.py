"""The verifiers by name, and the one that scores an item of a source.

Whatever a verifier does, what comes out of here is a number from 0 to 1 or a BarError: of the item,
whose reference is missing or broken, or VerifierFailed, of one answer. Who trains or evaluates for
days counts the latter as 0 (failures.py); who looks at data before reports both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from megatron_bar.data.bad_items import BadItems
from megatron_bar.data.messages import Message, check_text
from megatron_bar.data.sources import Conversation
from megatron_bar.recipe.training import REFERENCES, Source
from megatron_bar.runtime.errors import BarError, MachineError, VerifierFailed
from megatron_bar.runtime.faults import Faults
from megatron_bar.verifiers import (
    code,
    exact,
    instructions,
    judge,
    math,
    own,
    safety,
    tool_calls,
    toy,
)
from megatron_bar.verifiers.failures import Failures
from megatron_bar.verifiers.sandbox import runs_at_a_time
from megatron_bar.verifiers.scores import as_score

Verifier = Callable[[str, str, Any], float]

VERIFIERS: dict[str, Verifier] = {
    "code": code.score,
    "exact": exact.score,
    "instructions": instructions.score,
    "math": math.score,
    "safety": safety.score,
    "tool_calls": tool_calls.score,
    **toy.VERIFIERS,
}

# To try a reference by, where no answer is known. An empty one may be judged without a look at it.
ANY_ANSWER = "1"


def score_answers(
    items: Sequence[tuple[Source, Conversation]],
    responses: Sequence[str],
    bad: Sequence[BadItems],
    failures: Failures,
    advance: Callable[[int], None] = lambda done: None,
) -> list[float | None]:
    """The score of each response to an item, by the verifier of the item's source.

    None where the item can't be scored and `bad`, one for each response, leaves it out. A response
    on which its verifier fails earns 0, and is counted in `failures`. The items are scored side by
    side, so that one that hangs is waited for beside the others. `advance` is told of each.

    Raises BarError for an unknown verifier and a reference that is missing or broken, with the
    item's place, unless such items are left out.
    """

    def scored(item: tuple[Source, Conversation], response: str, bad: BadItems) -> float | None:
        with bad.caught(item[1].number, item[1].where):
            return failures.score(scorer(*item), response)
        return None

    with ThreadPoolExecutor(runs_at_a_time()) as threads:
        scores = []
        for score in threads.map(scored, items, responses, bad):
            scores.append(score)
            advance(1)
    return scores


def scorer(source: Source, conversation: Conversation) -> Callable[[str], float]:
    """A function that scores responses to an item of `source`.

    Raises BarError for an unknown verifier and a reference that is missing or no whole text, with
    the item's place. What is returned raises it for a reference that is broken; VerifierFailed
    where the verifier fails on the response; MachineError where the machine does.
    """
    with naming_item(conversation):
        verifier = verifier_for(source)
        prompt, reference = prompt_text(conversation), reference_of(source, conversation)
        if isinstance(reference, str):
            check_text(str(reference), "the reference")  # a number of any size is one, too

    what = f"verifier {verifier_name(source)} can't score an answer to"

    def score(response: str) -> float:
        with naming_item(conversation), naming_failure(what, conversation):
            return as_score(verifier(prompt, response, reference))

    return score


@dataclass
class Scorers:
    """Scorers of the items of one source, which are met one after the other.

    Where the recipe names no column of references, the first item tells where they are: in the
    usual column, or in the replies. Later items that differ would be scored by another rule.
    """

    source: Source
    by_column: bool | None = None  # whether the first item had its reference in the column

    def scorer(self, conversation: Conversation) -> Callable[[str], float]:
        """The scorer of one item; raises BarError also for an item that differs from the first."""
        score = scorer(self.source, conversation)
        by_column = _in_column(self.source, conversation) is not None
        if self.by_column is None:
            self.by_column = by_column
        if by_column != self.by_column:
            here, before = ("is", "isn't") if by_column else ("isn't", "is")
            raise BarError(
                f"{conversation.where}: column {REFERENCES!r} {here} here, and {before} in the "
                f"first item of source {conversation.source}, so that some items would be compared "
                "with their reply; give all of them the column, or make two sources of them"
            )
        return score


@contextlib.contextmanager
def naming_item(conversation: Conversation) -> Iterator[None]:
    """Name the conversation's place in errors of the block."""
    try:
        yield
    except MachineError:
        raise
    except BarError as error:
        raise type(error)(f"{conversation.where}: {error}") from None


@contextlib.contextmanager
def naming_failure(what: str, conversation: Conversation) -> Iterator[None]:
    """Tell in a line what the block does that it isn't meant to; a traceback names no item."""
    try:
        yield
    except VerifierFailed as error:
        kind: type[BarError] = VerifierFailed
        reason = str(error)
    except BarError:
        raise
    except Exception as error:
        # An answer can exhaust what a parser may take, but not the disk.
        kind = MachineError if isinstance(error, OSError) else VerifierFailed
        reason = " ".join(f"{type(error).__name__}: {error}".split())
    else:
        return
    raise kind(f"{what} this item of source {conversation.source}: {reason}")


def verifier_for(source: Source) -> Verifier:
    """The rule that scores answers to a source's items.

    Raises BarError for an unknown one, for a file of the user's that can't be loaded, and for a
    judge of what has none.
    """
    if judged_by_environment(source):
        return _left_to_the_environment
    if own.short_name(source.verifier) and source.judge is None:
        return own.load(source.verifier)
    name = verifier_name(source)
    if source.judge is not None:
        if name != "safety":
            raise BarError(f"judge is for the verifier safety; {name} judges by itself")
        return judge.judged_by(source.judge)
    if name not in VERIFIERS:
        raise BarError(
            f"verifier {name!r} is unknown; there are {', '.join(VERIFIERS)}, and "
            "functions in files of yours, as FILE.py:FUNCTION"
        )
    return VERIFIERS[name]


def check_verifier(source: Source, where: str, faults: Faults) -> None:
    """Add to `faults` of `where` what is wrong with the verifier of a source."""
    with faults.of(where, absent=own.is_absent(source.verifier)):
        verifier_for(source)


def verifier_name(source: Source) -> str:
    """The name in logs of the rule that scores answers to a source's items."""
    judge = source.environment if judged_by_environment(source) else source.verifier
    return own.short_name(judge) or judge or (f"toy/{source.toy}" if source.toy else "exact")


def judged_by_environment(source: Source) -> bool:
    """Whether rewards are what its environment gives, since it names no verifier beside that."""
    return source.environment is not None and not (source.verifier or source.toy)


def _left_to_the_environment(prompt: str, response: str, reference: Any) -> float:
    """What a conversation earns that was cut before its environment gave a reward."""
    return 0.0


def reference_of(source: Source, conversation: Conversation) -> Any:
    """The item's reference: its column, else the reply that the conversation ends with.

    Raises BarError if there is neither, unless an environment judges, which may do without; and for
    a column that the recipe names and isn't there.
    """
    if (reference := _in_column(source, conversation)) is not None:
        return reference
    if (column := source.reference_column) is not None:
        raise BarError(
            f"column {column!r}, the source's reference_column, is missing or null; "
            f"there are {', '.join(conversation.item)}; correct reference_column, or "
            "leave the item out"
        )
    last = conversation.messages[-1]
    if last["role"] != "assistant":
        if judged_by_environment(source):
            return None
        raise BarError(
            f"there is no column {REFERENCES!r} and no reply to compare "
            "answers with; set reference_column"
        )
    return reply_text(last)


def reply_text(reply: Message) -> str:
    """The text of an assistant's message, with the calls that it makes."""
    calls = reply.get("function_calls")
    return (reply.get("content") or "") + (
        f"<function_calls>{calls}</function_calls>" if calls else ""
    )


def _in_column(source: Source, conversation: Conversation) -> Any:
    return conversation.item.get(source.reference_column or REFERENCES)


def prompt_text(conversation: Conversation) -> str:
    """The user's last message."""
    return next(
        (
            message.get("content") or ""
            for message in reversed(conversation.messages)
            if message["role"] == "user"
        ),
        "",
    )
