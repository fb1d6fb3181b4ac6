"""Environments: functions of the user's that answer a policy, turn by turn, and may reward it.

An environment is `step(messages, reference)`, called after each reply of the policy with the
conversation that ends with it. It returns the next turn (text, or a role and content); a reward
from 0 to 1, which ends the conversation; or None, which ends it too and leaves the reward to the
source's verifier. Any of several processes may be asked (own.py), so it can't remember things.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_bar.data.messages import Message
from megatron_bar.data.sources import Conversation
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import VerifierFailed
from megatron_bar.runtime.faults import Faults
from megatron_bar.verifiers import own
from megatron_bar.verifiers.moves import Move
from megatron_bar.verifiers.own_kinds import ENVIRONMENT
from megatron_bar.verifiers.registry import (
    judged_by_environment,
    naming_failure,
    naming_item,
    reference_of,
)

Environment = Callable[[Sequence[Message]], Move]


def environment_of(source: Source, conversation: Conversation) -> Environment | None:
    """A function that answers the policy in an item of `source`, from any thread, or None.

    Raises BarError for a file of the user's that can't be loaded. What is returned raises it for an
    item that the environment calls broken, VerifierFailed for whatever else the environment does
    that isn't a move; both with the item's place.
    """
    if source.environment is None:
        return None
    step = own.load(source.environment, ENVIRONMENT)
    reference = reference_of(source, conversation)
    what = f"environment {own.short_name(source.environment)} fails in"

    def move(messages: Sequence[Message]) -> Move:
        with naming_item(conversation), naming_failure(what, conversation):
            found = step(messages, reference)
            if found is None and judged_by_environment(source):
                raise VerifierFailed("it ends without a reward, and the source names no verifier")
            return found

    return move


def check_environment(source: Source, where: str, faults: Faults) -> None:
    """Add to `faults` of `where` what is wrong with the environment of a source."""
    if source.environment is not None:
        with faults.of(where, absent=own.is_absent(source.environment)):
            own.load(source.environment, ENVIRONMENT)
