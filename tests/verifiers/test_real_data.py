"""On real data, reference answers score 1 and spoilt ones 0."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from megatron_bar.verifiers.registry import VERIFIERS
from tests.data.conftest import SHARED
from tests.verifiers.real_data import BROKEN, cases

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data isn't beside the project")


@pytest.mark.slow
@pytest.mark.sandbox
@pytest.mark.timeout(600)
def test_confusion():
    items = cases(SHARED)
    with ThreadPoolExecutor(4) as threads:
        scores = list(
            threads.map(
                lambda case: VERIFIERS[case.verifier]("", case.response, case.reference), items
            )
        )
    table = Counter((case.data, case.kind, score) for case, score in zip(items, scores))
    for data, kind in dict.fromkeys((case.data, case.kind) for case in items):
        print(
            f"{data:24} {kind:16} scored 1: {table[data, kind, 1.0]:5}"
            f"  scored 0: {table[data, kind, 0.0]:5}"
        )
    wrong = {
        (case.where, case.kind)
        for case, score in zip(items, scores)
        if score != float(case.kind == "right")
    }
    assert wrong <= {(where, "right") for where in BROKEN}


def test_every_instruction_of_ifeval_is_known():
    """There are no reference answers; that each prompt's constraints can be judged is shown."""
    path = SHARED / "general" / "ifeval" / "ifeval_first400.jsonl"
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert len(items) == 400
    scores = [VERIFIERS["instructions"](item["prompt"], "A few words.", item) for item in items]
    assert set(scores) == {0.0, 1.0}
    assert sum(scores) < 100
