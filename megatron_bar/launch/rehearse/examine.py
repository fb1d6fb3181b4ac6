"""Checks of a recipe's sources that a rehearsal alone makes: of some examples, and of the longest.

Whether reference answers are rewarded, replies end where answers stop, and prompts leave the real
model room; and how long examples are. No model is asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from megatron_bar.checkpoints.tokenizer_files import ChatFormat
from megatron_bar.data.bad_items import BadItems, describe_left_out
from megatron_bar.data.chat import prompt_ids, render
from megatron_bar.data.chat_format import check_prompt_length, closing_tokens
from megatron_bar.data.messages import Message
from megatron_bar.data.sources import (
    Conversation,
    Preference,
    SourceSample,
    choose,
    open_source,
    source_name,
)
from megatron_bar.launch.check_data import Reading, contents, readings
from megatron_bar.launch.rehearse.rewrite import few
from megatron_bar.launch.verify_data import try_known_answers
from megatron_bar.methods import stage_graph
from megatron_bar.recipe.fields import CHATS, ITEMS, PAIRS, PROMPTS, TEXTS
from megatron_bar.recipe.schema import Recipe
from megatron_bar.recipe.training import REFERENCES, Source
from megatron_bar.runtime.console import progress
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.faults import Faults
from megatron_bar.verifiers.known_answers import RIGHT, WRONG
from megatron_bar.verifiers.registry import verifier_name

_AT_THE_ENDS = 3  # examples at the beginning and the end of a source
_SCANNED = 20_000  # prompts of a source that are measured
_FRAME_BYTES = 2000  # of a chat template around a prompt, generously


@dataclass
class Examined:
    """Faults of the sources, what was found right, and how long examples are."""

    faults: Faults = field(default_factory=Faults)
    found: dict[str, list[str]] = field(default_factory=dict)  # by stage
    quartiles: dict[tuple, int] = field(default_factory=dict)  # tokens, by source and form

    def fitting(self, source: Source, form: str) -> int:
        """Tokens of a row that holds a quarter of the source's few examples; 0 of cut texts."""
        return self.quartiles.get((contents(source), form), 0)


def examine(recipe: Recipe, chat_format: ChatFormat | None, positions: int) -> Examined:
    """Read some examples of every source for the model of so many `positions`.

    Without `chat_format` (the run makes its tokenizer itself) nothing is rendered.
    """
    examined = Examined()
    uses = readings(stage_graph(recipe), examined.faults)
    with progress("sources", len(uses)) as advance:
        for reading in uses:
            with examined.faults.of(reading.stage):
                _examine(reading, recipe.seed, chat_format, positions, examined)
            advance(note=source_name(reading.source))
    return examined


def _examine(
    reading: Reading, seed: int, chat_format: ChatFormat | None, positions: int, examined: Examined
) -> None:
    """Note what is found. Raises BarError for what is wrong."""
    source, form = reading.source, reading.form
    drawn = open_source(source, seed, texts=form == TEXTS)
    sample = open_source(few(source, seed, form), seed, texts=form == TEXTS)
    ends = min(_AT_THE_ENDS, len(drawn))
    at_ends = [(0, ends), (len(drawn) - ends, len(drawn))]
    if form == TEXTS:
        for texts in (*(drawn.texts(*part) for part in at_ends), sample.texts()):
            for _ in texts:  # that it can be read is what counts
                pass
        return
    bad = BadItems.of(source)

    def items(
        of: SourceSample, start: int = 0, stop: int | None = None
    ) -> Iterator[Conversation | Preference]:
        read = of.preferences if form == PAIRS else of.conversations
        return read(start, stop, bad)

    own = list(items(sample))
    read = [item for part in at_ends for item in items(drawn, *part)] + own
    examples = list({example.where: example for example in read}.values())
    if form in (PROMPTS, ITEMS):
        asked = [example for example in examples if isinstance(example, Conversation)]
        scored = _scored(source, drawn.name, asked, bad)
        examined.found.setdefault(reading.stage, []).append(scored)
    if chat_format is None:
        return
    if form in (PROMPTS, ITEMS):
        _check_longest(reading, drawn, chat_format, positions)
    sizes = {}
    for example in examples:
        with bad.caught(example.number, example.where):
            sizes[example.where] = _size(example, form, chat_format)
    if lengths := sorted(sizes[example.where] for example in own if example.where in sizes):
        examined.quartiles[contents(source), form] = lengths[len(lengths) // 4]


def _size(example: Conversation | Preference, form: str, chat_format: ChatFormat) -> int:
    """Tokens of what is read of an example: of a pair, its longer conversation."""
    match example:
        case Preference(chosen=chosen, rejected=rejected):
            return max(len(_taught(messages, chat_format)) for messages in (chosen, rejected))
    measure = _taught if form == CHATS else _prompt
    return len(measure(example.messages, chat_format))


def _taught(messages: Sequence[Message], chat_format: ChatFormat) -> list[int]:
    """The tokens of a conversation. Raises BarError for one that doesn't teach to stop."""
    tokenizer, stop_ids = chat_format.tokenizer, chat_format.stop_ids
    ids, loss_mask = render(tokenizer, messages, chat_format.template)
    if not closing_tokens(tokenizer, ids, loss_mask) & stop_ids:
        spelt = " or ".join(tokenizer.convert_ids_to_tokens(sorted(stop_ids)))
        raise BarError(
            f"no reply ends with a token at which an answer stops ({spelt}), so that a "
            "model would never learn to stop; end replies with one in the chat template"
        )
    return ids


def _prompt(messages: Sequence[Message], chat_format: ChatFormat) -> list[int]:
    return prompt_ids(chat_format.tokenizer, messages, chat_format.template)


def _check_longest(
    reading: Reading, drawn: SourceSample, chat_format: ChatFormat, positions: int
) -> None:
    """Raise BarError for a prompt that leaves the model no room to answer."""
    most = reading.length  # longer prompts are left out
    if most is not None and most < positions:
        return
    chosen = choose(len(drawn), min(len(drawn), _SCANNED), "longest")
    scanned = dataclasses.replace(drawn, chosen=[drawn.chosen[index] for index in chosen])
    bad = BadItems.of(drawn.source)
    for conversation in scanned.conversations(bad=bad):
        # No token is shorter than a byte, so that most prompts needn't be tokenized.
        size = sum(
            len(str(value).encode(errors="replace"))
            for message in conversation.messages
            for value in message.values()
        )
        if size + _FRAME_BYTES < positions:
            continue
        with bad.caught(conversation.number, conversation.where):
            length = len(_prompt(conversation.messages, chat_format))
            if length <= (most or length):
                check_prompt_length(length, positions)


def _scored(source: Source, name: str, conversations: Sequence[Conversation], bad: BadItems) -> str:
    trial = try_known_answers(source, conversations, bad)
    if not trial.items:
        raise BarError(describe_left_out(name, list(bad.listed.values())))
    verifier = verifier_name(source)
    if trial.tried[RIGHT] and not trial.rewarded[RIGHT]:
        raise BarError(
            f"{trial.first(RIGHT)}: verifier {verifier} gives the reference answer no reward, nor "
            f"that of {trial.tried[RIGHT] - 1} more items of source {name}; correct verifier or "
            "reference_column"
        )
    if trial.tried[WRONG] and trial.rewarded[WRONG] == trial.tried[WRONG]:
        raise BarError(
            f"{trial.first(WRONG)}: verifier {verifier} rewards a wrong answer, and so it does for "
            f"{trial.tried[WRONG] - 1} more items of source {name}; correct verifier or "
            "reference_column"
        )
    misjudged = ""
    if trial.faults:
        misjudged = (
            f"; {trial.faults[0]}, and {len(trial.faults) - 1} more such answers: see "
            "megatron-bar verify-data"
        )
    if not trial.tried[RIGHT]:
        return f"{name}: references can be read, and tell no answer to score{misjudged}"
    what = (
        "reference answers"
        if trial.by_column
        else f"replies, which are the references without a column {REFERENCES!r},"
    )
    return f"{name}: {trial.rewarded[RIGHT]} of {trial.tried[RIGHT]} {what} are rewarded{misjudged}"
