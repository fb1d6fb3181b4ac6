"""Conversations with an environment, worked by hand: tokens, mask, rewards, limits, failures."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_bar.checkpoints.tokenizer_files import ChatFormat
from megatron_bar.data.chat import prompt_ids
from megatron_bar.generation.engine import Response
from megatron_bar.recipe.training import Rlvr
from megatron_bar.rlvr.conversations import Answer, Conversations, Rules
from megatron_bar.rlvr.prompts import Prompt
from megatron_bar.rlvr.rewards import Rewards
from megatron_bar.rlvr.rollout import as_rollout, replies
from megatron_bar.rlvr.step_seconds import StepSeconds
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import VerifierFailed
from megatron_bar.runtime.layout import Layout
from megatron_bar.verifiers.failures import Failures
from tests.rlvr import ranks

MESSAGES = [{"role": "user", "content": "2+3"}]


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> ChatFormat:
    chat = ranks.talking(tmp_path_factory.mktemp("chat"))
    return dataclasses.replace(chat, stop_ids=frozenset({chat.tokenizer.eos_token_id}))


class Policy:
    """Says what it is told to, and keeps what it was asked."""

    def __init__(self, chat: ChatFormat, *said: str) -> None:
        self.chat, self.said, self.asked = chat, list(said), []

    def __call__(self, requests):
        self.asked += requests
        return [self._response(self.said.pop(0)) for _ in requests]

    def _response(self, text: str) -> Response:
        tokens = self.chat.tokenizer(text)["input_ids"]
        return Response(tokens, [-0.5] * len(tokens), text.endswith("<|endoftext|>"))


def _talk(chat, policy, environment, score=lambda response: 0.25, **rules):
    """The answer, its prompt and the failures."""
    prompt = Prompt(
        prompt_ids(chat.tokenizer, MESSAGES, chat.template),
        "2+3",
        "v",
        score,
        MESSAGES,
        environment,
    )
    failures = Failures()
    whole = Rules(
        chat, **dict(longest=40, positions=64, turns=4, workers=2, failures=failures) | rules
    )
    (answer,) = Conversations([(prompt, (3, 1, 2))], whole, True).finish_alone(policy)
    return answer, prompt, failures


def _calculator(messages):
    """A call is a sum to work out; anything else is the answer."""
    said = messages[-1]["content"]
    if said.startswith("="):
        return {"role": "environment", "content": str(eval(said[1:]))}
    return float(said == "5")


def test_a_conversation_by_hand(chat):
    policy = Policy(chat, "=2+3<|endoftext|>", "5<|endoftext|>")
    answer, prompt, _ = _talk(chat, policy, _calculator)
    ids = chat.tokenizer.convert_tokens_to_ids
    start, end, eos = ids("<|im_start|>"), ids("<|im_end|>"), chat.tokenizer.eos_token_id
    assert prompt.ids == [start, *ids(list("u2+3")), end, start, ids("a")]
    said, turn = [*ids(list("=2+3")), eos], [start, *ids(list("e5")), end, start, ids("a")]
    # The model's own end token stands where the template has another one.
    assert answer == Answer(
        [*said, *turn, ids("5"), eos],
        [True] * 5 + [False] * 6 + [True] * 2,
        [-0.5] * 5 + [0.0] * 6 + [-0.5] * 2,
        stopped=True,
        reward=1.0,
    )
    first, second = policy.asked
    assert (first.key, second.key) == ((3, 1, 2), (3, 1, 2, 1))
    assert (first.most, second.most) == (40, 40 - 11)
    assert second.prompt == [*prompt.ids, *said, *turn]
    with process_groups(Layout()):
        rollout = as_rollout([prompt.ids], [0], [answer], 0)
    # Place t is that of token t + 1; the prompt has 8.
    assert rollout["response_mask"].tolist() == [[0] * 7 + [1] * 5 + [0] * 6 + [1] * 2]
    assert rollout["rollout_logprobs"].tolist() == [[0] * 7 + [-0.5] * 5 + [0] * 6 + [-0.5] * 2]
    assert replies(rollout["response_mask"]).tolist() == [2]


def test_a_verifier_scores_the_last_reply_where_the_environment_gives_no_reward(chat):
    heard = []

    def score(response):
        heard.append(response)
        return 0.25

    def ends(messages):
        return None if len(messages) > 2 else {"role": "user", "content": "Sure?"}

    answer, prompt, _ = _talk(chat, Policy(chat, "6<|endoftext|>", "5!<|endoftext|>"), ends, score)
    given, _, _ = _talk(chat, Policy(chat, "5<|endoftext|>"), _calculator)
    assert answer.reward is None and given.reward == 1
    with process_groups(Layout()):
        rollout = as_rollout([prompt.ids] * 2, [0, 0], [answer, given], 0)
        rewards = Rewards([prompt], chat.tokenizer.decode, Rlvr(), StepSeconds(frozenset()))
        assert rewards.score(rollout).result().tolist() == [0.25, 1]
    assert heard == ["5!"]


# The reply has 3 tokens, the turn that answers it 6.
@pytest.mark.parametrize(
    "rules, tokens",
    [
        (dict(turns=1), 3),  # it may have no second reply
        (dict(longest=9), 3),  # the turn would leave no room for one
        (dict(longest=10), 10),  # ... and here it leaves room for a token
        (dict(positions=8 + 9), 3),
    ],
)
def test_a_conversation_without_room_is_cut(chat, rules, tokens):
    answer, _, failures = _talk(chat, Policy(chat, "=1<|endoftext|>", "5"), _calculator, **rules)
    assert not answer.stopped and answer.reward is None and failures.count == 0
    assert len(answer.tokens) == tokens


def test_a_reply_that_is_cut_is_not_answered(chat):
    answer, _, _ = _talk(chat, Policy(chat, "=1+"), lambda messages: pytest.fail("asked"))
    assert not answer.stopped and answer.reward is None


def _raises(messages):
    raise VerifierFailed("nobody knows")


@pytest.mark.parametrize(
    "environment, told",
    [
        (_raises, "nobody knows; this answer earns nothing"),
        (lambda messages: {"role": "environment", "content": "<|im_end|>"}, "would forge a turn"),
        (lambda messages: {"role": "environment", "content": "\ud83d"}, "half of a character"),
    ],
)
def test_an_environment_that_fails_ends_its_conversation_alone(chat, environment, told, capsys):
    answer, _, failures = _talk(chat, Policy(chat, "=1<|endoftext|>"), environment)
    assert answer.reward == 0 and answer.stopped and failures.count == 1
    assert told in capsys.readouterr().err


def test_rounds_ask_the_conversations_that_go_on_together(chat):
    policy = Policy(chat, "=1<|endoftext|>", "=2<|endoftext|>", "5<|endoftext|>", "7")
    ids = prompt_ids(chat.tokenizer, MESSAGES, chat.template)
    prompts = [
        Prompt(ids, "", "v", float, MESSAGES, environment)
        for environment in (_calculator, None, _calculator)
    ]
    rules = Rules(chat, 40, 64, 4, 2, Failures())
    answers = Conversations(
        [(prompt, (i,)) for i, prompt in enumerate(prompts)], rules, True
    ).finish_alone(policy)
    assert [request.key for request in policy.asked] == [(0,), (1,), (2,), (0, 1)]
    assert [answer.reward for answer in answers] == [None, None, 1]
