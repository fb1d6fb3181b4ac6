"""What a step logs of its updates."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

from megatron_bar.rlvr.learner import Learner
from megatron_bar.rlvr.policy import Update

EMPTY = Update(loss=0.0, clip_fraction=0.0, ratio_error=0.0, tokens=0)
TAUGHT = Update(loss=0.5, clip_fraction=0.25, ratio_error=0.125, tokens=3)


def logged(*updates: Update) -> dict[str, float]:
    learner = SimpleNamespace(
        optimizer=SimpleNamespace(param_groups=[{"lr": 1.0}], step=lambda: (True, 2.5, 0)),
        schedule=SimpleNamespace(step=lambda steps: None),
        progress=SimpleNamespace(applied=0),
        seconds=SimpleNamespace(of=lambda part: contextlib.nullcontext()),
        _learned=False,
    )
    numbers = {}
    for update in updates:
        numbers |= Learner.apply(learner, update)
    return numbers


def test_an_update_without_tokens_hides_nothing_of_the_one_before_it():
    whole = {"lr": 1.0, "loss": 0.5, "clip_fraction": 0.25, "ratio_error": 0.125, "grad_norm": 2.5}
    assert logged(TAUGHT, EMPTY) == logged(EMPTY, TAUGHT) == whole
    assert logged(EMPTY) == whole | {
        "loss": 0.0,
        "clip_fraction": 0.0,
        "ratio_error": 0.0,
        "grad_norm": 0.0,
    }
