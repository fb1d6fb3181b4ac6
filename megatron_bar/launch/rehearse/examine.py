"""A recipe's sources, read as its stages will read them: some examples of each, and the longest.

Nothing is tokenized that needn't be, and no model is asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from megatron_bar.data.chat import prompt_ids, render
from megatron_bar.data.sources import Conversation, Drawn, choose, open_source, source_name
from megatron_bar.launch.rehearse.references import Worth, worth_of_references
from megatron_bar.launch.rehearse.rewrite import few
from megatron_bar.methods import stage_graph
from megatron_bar.recipe.schema import Recipe, Rlvr, Source
from megatron_bar.runtime.console import progress
from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.context import parts_of, sources, training_of
from megatron_bar.stages.stage import Stage
from megatron_bar.verifiers import verifier_name

_AT_THE_ENDS = 3  # examples at the beginning and the end of a source
_SCANNED = 20_000  # prompts of a source that are measured
_FRAME_BYTES = 2000  # of a chat template around a prompt, generously
_KINDS = {"midtrain": "texts", "sft": "chats", "rlvr": "prompts", "route": "chats"}


@dataclass(frozen=True)
class Speech:
    """How conversations become tokens, and which tokens end a reply."""

    tokenizer: PreTrainedTokenizerBase
    template: str
    stop_ids: frozenset[int]


@dataclass(frozen=True)
class _Use:
    """A stage reads a source as `kind`; `row` tokens are taken of an example at most."""

    stage: str
    source: Source
    kind: str
    row: int


@dataclass
class Examined:
    """What is wrong with the sources, what was found right, and how long examples are."""

    faults: list[str] = field(default_factory=list)
    found: dict[str, list[str]] = field(default_factory=dict)  # by stage
    quartiles: dict[tuple, int] = field(default_factory=dict)  # tokens, by source and kind

    def fitting(self, source: Source, kind: str) -> int:
        """Tokens of a row that holds a quarter of the source's few examples; 0 of cut texts."""
        return self.quartiles.get(_key(source, kind), 0)


def examine(recipe: Recipe, speech: Speech | None, positions: int) -> Examined:
    """Read some examples of every source for the model of so many `positions`.

    Without `speech` (the run makes its tokenizer itself) nothing is rendered.
    """
    examined = Examined()
    uses = list(_uses(recipe))
    with progress("sources", len(uses)) as advance:
        for use in uses:
            try:
                if told := _examine(use, recipe.seed, speech, positions, examined):
                    examined.found.setdefault(use.stage, []).append(told)
            except BarError as error:
                examined.faults.append(f"{use.stage}: {error}")
            advance(note=source_name(use.source))
    return examined


def _uses(recipe: Recipe) -> Iterator[_Use]:
    """Each source once for each way that it is read in."""
    seen = set()
    for stage in stage_graph(recipe):
        for use in _of_stage(stage):
            if (key := (_key(use.source, use.kind), use.row)) not in seen:
                seen.add(key)
                yield use


def _of_stage(stage: Stage) -> Iterator[_Use]:
    if stage.kind == "evaluate":
        for entries in stage.settings["tasks"].values():
            for source in sources(entries):
                yield _Use(stage.name, source, "items", 0)
    if stage.kind not in _KINDS:
        return
    kind = _KINDS[stage.kind]
    for part in parts_of(stage):
        training = training_of(part)
        row = training.prompt_length if isinstance(training, Rlvr) else training.sequence_length
        sampled = [source for entries in stage.settings.get("sampled", {}).values()
                   for source in sources(entries)]
        for source in [*training.data, *training.validation, *sampled]:
            yield _Use(stage.name, source, kind, row)


def _key(source: Source, kind: str) -> tuple:
    return kind, *dataclasses.astuple(dataclasses.replace(source, repeat=1, weight=None))


def _examine(
    use: _Use, seed: int, speech: Speech | None, positions: int, examined: Examined
) -> str | None:
    """A few words on what was found. Raises BarError for what is wrong."""
    drawn = open_source(use.source, seed, texts=use.kind == "texts")
    ends = min(_AT_THE_ENDS, len(drawn))
    at_ends = [(0, ends), (len(drawn) - ends, len(drawn))]
    sample = open_source(few(use.source, seed, use.kind), seed, texts=use.kind == "texts")
    if use.kind == "texts":
        for texts in (*(drawn.texts(*part) for part in at_ends), sample.texts()):
            for _ in texts:  # that it can be read is what counts
                pass
        return None
    own = list(sample.conversations())
    read = [c for part in at_ends for c in drawn.conversations(*part)] + own
    conversations = list({conversation.where: conversation for conversation in read}.values())
    told = None
    if use.kind in ("prompts", "items"):
        told = _scored(use.source, drawn.name, conversations)
    if speech is None:
        return told
    if use.kind == "chats":
        _check_ends(conversations, speech)
        lengths = [len(_rendered(c, speech)[0]) for c in own]
    else:
        _check_longest(use, drawn, speech, positions)
        lengths = [len(_prompt(c, speech)) for c in own]
    examined.quartiles[_key(use.source, use.kind)] = sorted(lengths)[len(lengths) // 4]
    return told


def _check_ends(conversations: Sequence[Conversation], speech: Speech) -> None:
    """Raise BarError for a conversation that doesn't teach to stop."""
    for conversation in conversations:
        ids, mask = _rendered(conversation, speech)
        if not _ends_reply(ids, mask, speech.stop_ids):
            raise BarError(
                f"{conversation.where}: no token that ends an answer ({_spelt(speech)}) carries "
                "loss in the last reply, so that a model would never learn to stop; put it inside "
                "the chat template's {% generation %}"
            )


def _rendered(conversation: Conversation, speech: Speech) -> tuple[list[int], list[bool]]:
    """As `render`, with the conversation's place in errors."""
    try:
        return render(speech.tokenizer, conversation.messages, speech.template)
    except BarError as error:
        raise BarError(f"{conversation.where}: {error}") from None


def _ends_reply(ids: Sequence[int], mask: Sequence[bool], stop_ids: frozenset[int]) -> bool:
    """Does an end token stand among the tokens that the conversation ends with and that carry loss?
    """
    for token, carries_loss in zip(reversed(ids), reversed(mask)):
        if not carries_loss:
            return False
        if token in stop_ids:
            return True
    return False


def _spelt(speech: Speech) -> str:
    return " or ".join(speech.tokenizer.convert_ids_to_tokens(sorted(speech.stop_ids)))


def _prompt(conversation: Conversation, speech: Speech) -> list[int]:
    try:
        return prompt_ids(speech.tokenizer, conversation.messages, speech.template)
    except BarError as error:
        raise BarError(f"{conversation.where}: {error}") from None


def _check_longest(use: _Use, drawn: Drawn, speech: Speech, positions: int) -> None:
    """Raise BarError for a prompt that leaves the model no room to answer."""
    most = use.row if use.kind == "prompts" else None  # longer prompts are left out
    if most is not None and most < positions:
        return
    chosen = choose(len(drawn), min(len(drawn), _SCANNED), "longest")
    scanned = dataclasses.replace(drawn, chosen=[drawn.chosen[index] for index in chosen])
    for conversation in scanned.conversations():
        # No token is shorter than a byte, so that most prompts needn't be tokenized.
        size = sum(len(str(value).encode(errors="replace"))
                   for message in conversation.messages for value in message.values())
        if size + _FRAME_BYTES < positions:
            continue
        length = len(_prompt(conversation, speech))
        if positions <= length <= (most or length):
            raise BarError(f"{conversation.where}: the prompt has {length} tokens, which leaves no "
                           f"room for an answer in the model's {positions} positions")


def _scored(source: Source, name: str, conversations: Sequence[Conversation]) -> str:
    worth: Worth = worth_of_references(source, conversations)
    if worth.known and not worth.earned:
        raise BarError(
            f"{worth.first_without}: verifier {verifier_name(source)} gives the reference "
            f"answer no reward, nor that of {worth.known - 1} more items of source {name}; correct "
            "verifier or reference_column"
        )
    if not worth.known:
        return f"{name}: references can be read, and tell no answer to score"
    return f"{name}: {worth.earned} of {worth.known} reference answers are rewarded"
