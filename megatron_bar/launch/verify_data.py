"""`megatron-bar verify-data`: whether verifiers and references fit together, item by item.

The reference answer of each item has to earn 1, an empty and a wrong answer 0. No model is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from megatron_bar.data.bad_items import SKIP, BadItems, describe_left_out
from megatron_bar.data.sources import Conversation, open_source
from megatron_bar.launch.check_data import contents, readings
from megatron_bar.launch.contamination import find_contamination
from megatron_bar.methods import stage_graph
from megatron_bar.recipe.fields import ITEMS, PROMPTS
from megatron_bar.recipe.schema import Recipe
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.console import progress, say
from megatron_bar.runtime.errors import BarError, VerifierFailed
from megatron_bar.runtime.faults import Faults
from megatron_bar.runtime.files import write_json_lines
from megatron_bar.stages.stage import Reading
from megatron_bar.verifiers.known_answers import (
    EMPTY,
    RIGHT,
    WRONG,
    KnownAnswer,
    known_answers,
)
from megatron_bar.verifiers.registry import Scorers, verifier_for, verifier_name
from megatron_bar.verifiers.sandbox import runs_at_a_time

CONTAMINATION = "contamination.jsonl"
_AT_ONCE = 1000  # items in memory
_ON_SCREEN = 10  # misjudged answers of a source

_Score = Callable[[str], float]
_Prepared = tuple[Conversation, _Score, Sequence[KnownAnswer]]


@dataclass(frozen=True)
class Misjudged:
    """An answer that doesn't earn what it should, or an item that can't be scored."""

    where: str
    what: str
    kind: str | None = None
    answer: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass
class Trial:
    """The earnings of the known answers to the items of a source, counted by their kind."""

    items: int = 0
    tried: Counter[str] = field(default_factory=Counter)
    as_due: Counter[str] = field(default_factory=Counter)  # that earned what they should
    rewarded: Counter[str] = field(default_factory=Counter)  # that earned anything
    by_column: bool | None = None  # whether references are in a column, not the replies themselves
    faults: list[Misjudged] = field(default_factory=list)

    def first(self, kind: str) -> str:
        """The place of the first answer of a kind that was misjudged."""
        return next(fault.where for fault in self.faults if fault.kind == kind)

    def __str__(self) -> str:
        words = [
            f"{self._share(kind)} {what}"
            for kind, what in (
                (RIGHT, "reference answers earn 1"),
                (EMPTY, "empty answers earn 0"),
                (WRONG, "wrong answers earn 0"),
            )
            if self.tried[kind]
        ]
        none = "no answer's worth is known" if self.items else "no item could be scored"
        return ", ".join(words or [none])

    def _share(self, kind: str) -> str:
        due, tried = self.as_due[kind], self.tried[kind]
        return f"all {tried}" if due == tried else f"{due} of {tried}"


def try_known_answers(
    source: Source,
    conversations: Iterable[Conversation],
    bad: BadItems,
    advance: Callable[[int], None] = lambda done: None,
) -> Trial:
    """Let the source's verifier score the known answers to each of `conversations`.

    The items are scored side by side. Raises BarError, with its place, for a reference that is
    missing or that the verifier can't read, where such items aren't to be left out.
    """
    scorers, trial = Scorers(source), Trial()
    prepared = _prepared(scorers, conversations, bad)
    with ThreadPoolExecutor(runs_at_a_time()) as threads:
        while some := list(islice(prepared, _AT_ONCE)):
            for (conversation, _, answers), scores in zip(some, threads.map(_scores, some)):
                with bad.caught(conversation.number, conversation.where):
                    _count(trial, conversation, answers, scores)
                advance(1)
    trial.by_column = scorers.by_column
    return trial


def _prepared(
    scorers: Scorers, conversations: Iterable[Conversation], bad: BadItems
) -> Iterator[_Prepared]:
    for conversation in conversations:
        found = None
        with bad.caught(conversation.number, conversation.where):
            found = scorers.scorer(conversation), known_answers(scorers.source, conversation)
        if found is not None:
            yield conversation, *found


def _scores(item: _Prepared) -> list[float | BarError]:
    """The score of each known answer, or what is wrong instead."""
    _, score, answers = item
    found: list[float | BarError] = []
    for answer in answers:
        try:
            found.append(score(answer.text))
        except BarError as error:
            found.append(error)
    return found


def _count(
    trial: Trial,
    conversation: Conversation,
    answers: Sequence[KnownAnswer],
    scores: Sequence[float | BarError],
) -> None:
    """Raises BarError for a reference that is broken."""
    for score in scores:
        if isinstance(score, BarError) and not isinstance(score, VerifierFailed):
            raise score
    trial.items += 1
    for answer, score in zip(answers, scores):
        if answer.worth is not None:
            trial.tried[answer.kind] += 1
        if isinstance(score, BarError):
            reason = str(score).removeprefix(f"{conversation.where}: ")
            trial.faults.append(
                Misjudged(conversation.where, f"{answer.kind}: {reason}", answer.kind, answer.text)
            )
        elif answer.worth is not None:
            trial.rewarded[answer.kind] += score > 0
            trial.as_due[answer.kind] += score == answer.worth
            if score != answer.worth:
                trial.faults.append(
                    Misjudged(
                        conversation.where,
                        f"{answer.kind} earns {score:g}, not {answer.worth:g}",
                        answer.kind,
                        answer.text,
                    )
                )


def verify_data(recipe: Recipe, target: Path) -> None:
    """Try the known answers to every prompt of RLVR and every held-out item of `recipe`.

    Says what was found of each source. What is misjudged, or can't be scored and isn't to be left
    out, is listed in the file `target`, a JSON object a line; without such there is no file.
    Held-out items that training data give away are no fault; they are said, and listed beside it.

    Raises BarError if there is anything of that kind.
    """
    faults, listed = Faults(), []  # of sources, and of items
    uses: dict[tuple, Reading] = {}
    found = readings(stage_graph(recipe), faults)
    for reading in found:
        if reading.form in (PROMPTS, ITEMS):
            uses.setdefault(contents(reading.source), reading)
    if not uses and not faults:
        say("the recipe has neither prompts of RLVR nor tasks, so there is nothing to verify")
    for reading in uses.values():
        with faults.of(reading.where):
            listed += [
                {
                    "of": reading.where,
                    "where": fault.where,
                    "fault": fault.what,
                    "answer": fault.answer,
                }
                for fault in _verify(reading, recipe.seed)
            ]
    find_contamination(found, recipe.seed, target.with_name(CONTAMINATION))
    target.unlink(missing_ok=True)
    lines = list(map(str, faults))
    if listed:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(target, listed)
        lines.append(
            f"answers that aren't judged as they should be: {len(listed)}; all are listed "
            f"in {target}"
        )
    if lines:
        raise BarError("\n".join(lines))


def _verify(reading: Reading, seed: int) -> list[Misjudged]:
    """Try the known answers to all items of a source, and say what was found."""
    source = reading.source
    verifier_for(source)  # what is wrong with it is no fault of the items
    drawn = open_source(source, seed, texts=False)
    bad = BadItems(skip=True)  # where the first one ends a stage, all are told here
    with progress(f"verify {drawn.name}", len(drawn)) as advance:
        trial = try_known_answers(source, drawn.conversations(bad=bad), bad, advance)
    say(f"{reading.where}, {drawn.name}: verifier {verifier_name(source)}: {trial}")
    faults = trial.faults
    if bad.listed and source.on_bad_item == SKIP:
        say(f"  {describe_left_out(drawn.name, list(bad.listed.values()))}")
    elif bad.listed:
        faults = [Misjudged(entry["where"], entry["reason"]) for entry in bad.listed.values()]
        faults += trial.faults
    for fault in faults[:_ON_SCREEN]:
        say(f"  {fault}")
    if len(faults) > _ON_SCREEN:
        say(f"  ... and {len(faults) - _ON_SCREEN} more")
    return faults
