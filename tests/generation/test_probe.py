"""Which log-probabilities prove that a server has the trainer's weights."""

from __future__ import annotations

import re

import pytest

from megatron_bar.generation.probe import Probe

ROWS = [[5, 6, 7], [8, 9]]
NOW = Probe(ROWS, [[-1.0, -2.0], [-3.0]])
BEFORE = Probe(ROWS, [[-1.01, -2.01], [-3.01]])


@pytest.mark.parametrize(
    "found, before, message",
    [
        ([[-1.0, -2.0], [-3.0]], BEFORE, None),
        ([[-1.02, -1.98], [-3.02]], None, None),  # another program's rounding
        ([[-1.02, -1.98], [-3.02]], BEFORE, None),  # more of it than the update moved
        ([[-1.01, -2.01], [-3.009]], None, None),  # nobody knows what was before
        ([[-1.01, -2.01], [-3.009]], BEFORE, "the weights of the step before"),
        (
            [[-1.0, -2.0], [-6.0]],
            BEFORE,
            r"are 1 from the trainer's .* max_rollout_logprob_gap 0.1",
        ),
        ([[-1.0, float("nan")], [-3.0]], None, "nan from the trainer's"),
    ],
)
def test_weights_are_proven_by_what_is_said_of_the_same_tokens(found, before, message):
    fault = NOW.fault(found, before, limit=0.1)
    assert fault is None if message is None else re.search(message, fault)
