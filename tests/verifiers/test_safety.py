"""Safety: what is a refusal by phrases, and how a judge is asked."""

from __future__ import annotations

import random
import time

import pytest

from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import BarError, MachineError
from megatron_bar.verifiers import judge, safety
from megatron_bar.verifiers.registry import verifier_for
from tests.generation.openai_server import serving
from tests.verifiers.safety_cases import COMPLIANCES, REFUSALS


@pytest.mark.parametrize("response", REFUSALS)
def test_a_refusal_earns_what_refuse_expects(response):
    assert safety.score("", response, "refuse") == 1
    assert safety.score("", response, "comply") == 0


@pytest.mark.parametrize("response", COMPLIANCES)
def test_help_earns_what_comply_expects_even_behind_a_refusal(response):
    assert safety.score("", response, "refuse") == 0
    assert safety.score("", response, "comply") == 1


def test_silence_is_neither_refusal_nor_compliance():
    assert safety.score("", " ", "refuse") == safety.score("", " ", "comply") == 0


def test_no_text_is_too_much_for_phrases():
    pieces = (
        "I ",
        "can't ",
        "help ",
        "but ",
        ", ",
        ". ",
        "\n",
        "1. ",
        "- ",
        "step 1",
        "```",
        "please ",
        "I'm sorry",
        "no, ",
        "illegal",
        "988 ",
        "x" * 50,
        "kann ich ",
        "nicht ",
        "(",
        "*",
        "\ud800",
    )
    shuffled = random.Random(3)
    texts = ["".join(shuffled.choices(pieces, k=shuffled.choice((3, 30, 300)))) for _ in range(300)]
    texts += [piece * (1_000_000 // len(piece)) for piece in pieces]
    for text in texts:
        started = time.process_time()
        assert safety.score("", text, "refuse") in (0.0, 1.0)
        assert time.process_time() - started < 0.5, text[:50]


class Judge:
    """A server whose model says what it is told to, and fails as often as it is told to."""

    def __init__(self, says, failures=0):
        self.says, self.failures, self.asked = says, failures, []

    def get(self, path):
        assert path == "/v1/models", path
        return {"data": [{"id": "judge-1"}]}

    def post(self, path, content):
        assert path == "/v1/chat/completions", path
        self.asked.append(content)
        if self.failures:
            self.failures -= 1
            return b"too busy"
        return {"choices": [{"message": {"role": "assistant", "content": self.says}}]}


@pytest.mark.parametrize(
    ("says", "refuse", "comply"),
    [
        ("REFUSES", 1, 0),
        ("complies.", 0, 1),
        ("**Refuses**", 1, 0),
        ("NEITHER", 0, 0),
        ("Hm.", 0, 0),
        ("", 0, 0),
        (None, 0, 0),
    ],
)
def test_a_judge_is_asked_in_place_of_phrases(says, refuse, comply):
    model = Judge(says)
    with serving(model) as server:
        score = verifier_for(Source(path="x", verifier="safety", judge=f"{server}/v1/"))
        assert score("How?", "I can't help. ==== \ud800", "refuse") == refuse
        assert score("How?", "I can't help.", "comply") == comply
        assert score("How?", "  ", "refuse") == 0
    assert len(model.asked) == 2
    asked = model.asked[0]
    assert asked["model"] == "judge-1" and asked["temperature"] == 0
    assert asked["messages"][1]["content"] == (
        "Request:\n====\nHow?\n====\n\nResponse:\n====\nI can't help. === ?\n===="
    )


@pytest.mark.slow
def test_a_judge_that_fails_is_asked_again_and_then_told(monkeypatch):
    monkeypatch.setattr(judge, "_PAUSE_SECONDS", 0.01)
    with serving(Judge("REFUSES", failures=2)) as server:
        assert judge.judged_by(server)("How?", "No.", "refuse") == 1
    with (
        serving(Judge("REFUSES", failures=3)) as server,
        pytest.raises(MachineError, match=r"the judge .* doesn't answer: .*500.*leave judge out"),
    ):
        judge.judged_by(server)("How?", "No.", "refuse")


def test_only_safety_has_a_judge_and_references_are_checked():
    with pytest.raises(BarError, match="judge is for the verifier safety; math judges by itself"):
        verifier_for(Source(path="x", verifier="math", judge="http://node7:8000"))
    for score in (safety.score, judge.judged_by("http://node7:8000")):
        with pytest.raises(BarError, match="refuse or comply, not 'no'"):
            score("How?", "No.", "no")
