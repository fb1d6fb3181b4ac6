"""The prompts of an RLVR stage, the order they are asked in, and those that rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from megatron_bar.data.batches import Batches
from megatron_bar.data.messages import Message
from megatron_bar.verifiers.environments import Environment


@dataclass(frozen=True)
class Prompt:
    """A task: the tokens to answer, and what a response is worth, from 0 to 1.

    `score` raises BarError for a reference that is broken, VerifierFailed for a response that the
    verifier fails on; and so does `environment`, which answers the policy.
    """

    ids: list[int]
    text: str
    verifier: str  # what logs call the rule
    score: Callable[[str], float]
    messages: Sequence[Message] = ()  # as the template gets them
    environment: Environment | None = None


@dataclass(frozen=True)
class Asked:
    """The prompts that one step asks, by number, and the order's place after them."""

    prompts: list[int]
    place: int


@dataclass
class PromptOrder:
    """Order of the prompts: each epoch a permutation by the seed, less those that rest.

    `place` and `resting` are all there is to save. A prompt that was solved too often rests, since
    its samples teach nothing (the published run leaves out what is solved in 87.5 % of them).
    """

    prompts: int
    seed: int
    place: int = 0  # in the endless sequence of epochs
    resting: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._order = Batches(self.prompts, 1, self.seed)

    def peek(self, count: int, after: Asked | None = None) -> Asked:
        """The next `count` prompts, or those `after` others; nothing moves.

        No prompt twice. Where fewer than `count` are awake, all are asked.
        """
        asleep = self.resting if self.prompts - len(self.resting) >= count else set()
        chosen: list[int] = []
        place = self.place if after is None else after.place
        while len(chosen) < count:
            index = int(self._order.indices(place)[0])
            place += 1
            if index not in asleep and index not in chosen:
                chosen.append(index)
        return Asked(chosen, place)

    def pass_by(self, asked: Asked) -> None:
        """Go on after prompts that were learned from."""
        self.place = asked.place

    def rest(self, indices: Sequence[int]) -> None:
        self.resting.update(indices)

    def state(self) -> dict:
        return {"place": self.place, "resting": sorted(self.resting)}

    def restore(self, state: dict) -> None:
        self.place = state["place"]
        self.resting = set(state["resting"])
