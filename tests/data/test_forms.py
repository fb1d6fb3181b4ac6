"""Conversations in every form that people have them become the project's own, or are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megatron_bar.data.chat import TEMPLATES, render
from megatron_bar.data.forms.calls import calls_text
from megatron_bar.data.sources import load_conversations, open_source
from megatron_bar.recipe.training import Source
from megatron_bar.runtime.errors import BarError
from megatron_bar.verifiers.call_formats import Call, parse_calls

HI = {"role": "user", "content": "Hi"}
YO = {"role": "assistant", "content": "Yo"}
CHAT = [HI, YO]
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Bergen", "days": 2}'},
}
CALLED = 'weather(city="Bergen", days=2)'


def load(tmp_path: Path, record: dict, **more):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record) + "\n")
    return load_conversations(Source(path=str(path), **more), seed=0)[0]


def messages(tmp_path: Path, record: dict, **more) -> list[dict]:
    return load(tmp_path, record, **more).messages


def says(**more) -> dict:
    return {"messages": [HI, {"role": "assistant", **more}]}


@pytest.mark.parametrize(
    "form, record",
    [
        ("messages", {"messages": CHAT}),
        ("messages", {"conversations": CHAT}),
        ("messages", {"messages": json.dumps(CHAT)}),
        ("messages", {"messages": [{"role": "User", "content": "Hi"}, YO]}),
        (
            "messages",
            {"messages": [{"role": "human", "content": "Hi"}, {"role": "gpt", "content": "Yo"}]},
        ),
        (
            "messages",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "H"}, "i"]},
                    YO | {"id": "7", "name": "Ann", "timestamp": 3, "refusal": None},
                ]
            },
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]},
        ),
        (
            "sharegpt",
            {
                "conversations": json.dumps(
                    [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]
                )
            },
        ),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Yo"}),
        ("alpaca", {"instruction": "Hi", "context": "", "response": "Yo", "category": "x"}),
        ("prompt_completion", {"prompt": "Hi", "completion": "Yo"}),
        ("prompt_completion", {"prompt": "Hi", "response": "Yo"}),
        ("prompt_completion", {"prompt": [HI], "completion": [YO]}),
    ],
)
def test_a_form_is_recognised(tmp_path, form, record):
    plain = [{key: m[key] for key in ("role", "content")} for m in messages(tmp_path, record)]
    assert plain == CHAT
    drawn = open_source(Source(path=str(tmp_path / "a.jsonl")), 0, texts=False)
    assert drawn.form.name == form
    assert messages(tmp_path, record, format=form) == messages(tmp_path, record)


def test_more_of_alpaca_and_prompts(tmp_path):
    record = {
        "instruction": "Sum",
        "input": "1 2",
        "output": "3",
        "system": "Be brief.",
        "history": [["Hi", "Yo"]],
    }
    assert messages(tmp_path, record) == [
        {"role": "system", "content": "Be brief."},
        *CHAT,
        {"role": "user", "content": "Sum\n1 2"},
        {"role": "assistant", "content": "3"},
    ]
    asked = {"prompt": "3?", "response": "3", "input": "", "history": [["Hi", "Yo"]]}
    assert messages(tmp_path, asked) == [
        *CHAT,
        {"role": "user", "content": "3?"},
        {"role": "assistant", "content": "3"},
    ]
    found = load(tmp_path, {"prompt": "Hi", "answer": "4"})  # as RLVR reads it
    assert found.messages == [HI] and found.item["answer"] == "4"


@pytest.mark.parametrize(
    "role, ours",
    [
        ("developer", "system"),
        ("tool", "environment"),
        ("ipython", "environment"),
        ("function", "environment"),
        ("environment", "environment"),
        ("SYSTEM", "system"),
    ],
)
def test_roles(tmp_path, role, ours):
    record = {"messages": [HI, YO, {"role": role, "content": "3", "tool_call_id": "1"}, YO]}
    assert messages(tmp_path, record)[2] == {
        "role": ours,
        "content": "3",
        "tool_call_id": "1",
    }


@pytest.mark.parametrize(
    "record",
    [
        says(content=None, tool_calls=[CALL]),
        says(tool_calls=[CALL]),
        says(content="", tool_calls=json.dumps([CALL])),
        says(
            tool_calls=[
                {"function": {"name": "weather", "arguments": {"city": "Bergen", "days": 2}}}
            ]
        ),
        says(function_call=CALL["function"]),
        says(function_calls=[{"name": "weather", "arguments": {"city": "Bergen", "days": 2}}]),
        says(content="", function_calls=CALLED),
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "function_call", "value": json.dumps(CALL["function"])},
            ]
        },
    ],
)
def test_calls(tmp_path, record):
    call = messages(tmp_path, record)[1]
    assert call["role"] == "assistant" and call["function_calls"] == CALLED
    assert not call.get("content") and "tool_calls" not in call


@pytest.mark.parametrize(
    "calls",
    [
        [("f", {})],
        [("a.b", {"x": None, "y": [True, {"k": 'say "é"\n\t\\ \u2028 \x00'}]})],
        [("f", {"x": -1.5e10}), ("g", {"z": "</a>"})],
        [("get-weather", {"city": "Rome"})],
        [("f", {"class": 1, "a b": 2})],
    ],
)
def test_the_verifier_reads_what_calls_become(calls):
    written = [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    text = f"<function_calls>{calls_text(written)}</function_calls>"
    assert parse_calls(text) == [Call(name, arguments) for name, arguments in calls]


OPENAI_TOOLS = [{"type": "function", "function": WEATHER}]


@pytest.mark.parametrize(
    "columns",
    [
        {"tools": OPENAI_TOOLS},
        {"tools": json.dumps(OPENAI_TOOLS)},
        {"functions": [WEATHER]},
        {"tools": [WEATHER]},
    ],
)
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_functions_of_a_column_are_in_the_system_turn(tmp_path, dolma2, columns, system):
    record = {"messages": [*system, HI, {"role": "assistant", "tool_calls": [CALL]}]} | columns
    found = messages(tmp_path, record)
    assert found[0] == {
        "role": "system",
        "content": system[0]["content"] if system else "",
        "functions": json.dumps([WEATHER]),
    }
    text = dolma2.decode(render(dolma2, found, TEMPLATES["olmo"])[0])
    words = "Be brief." if system else "Your knowledge ends in November 2024."
    assert f"{words} <functions>{json.dumps([WEATHER])}</functions><|im_end|>" in text
    assert f"assistant\n<function_calls>{CALLED}</function_calls>" in text


def test_functions_of_a_message_may_be_a_list(tmp_path):
    record = {"messages": [{"role": "system", "content": "s", "functions": [WEATHER]}, *CHAT]}
    converted = messages(tmp_path, record)
    assert converted[0]["functions"] == json.dumps([WEATHER])
    assert messages(tmp_path, record | {"tools": OPENAI_TOOLS}) == converted
    assert messages(tmp_path, {"messages": CHAT, "tools": [], "functions": None}) == CHAT


def test_tables(tmp_path):
    """Arrow fills objects with each other's keys; messages may be JSON text."""
    records = [
        {
            "messages": [
                HI,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}],
                },
            ]
        },
        {
            "messages": [
                HI,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": "g", "arguments": {"y": 2}}}],
                },
            ]
        },
        {"messages": CHAT},
    ]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    found = [c.messages for c in load_conversations(Source(path=str(path)), 0)]
    assert [turns[1].get("function_calls") for turns in found] == ["f(x=1)", "g(y=2)", None]
    assert found[2] == CHAT
    texts = [{"messages": json.dumps(CHAT)}] * 2
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(texts), path)
    assert [c.messages for c in load_conversations(Source(path=str(path)), 0)] == [CHAT] * 2


@pytest.mark.parametrize(
    "key, learned",
    [
        ({"weight": 0}, False),
        ({"weight": 0.0}, False),
        ({"train": False}, False),
        ({"loss": False}, False),
        ({"loss_mask": 0}, False),
        ({"weight": 1}, True),
        ({"train": True, "weight": 1.0}, True),
        ({"weight": None}, True),
    ],
)
def test_a_turn_may_carry_no_loss(tmp_path, dolma2, key, learned):
    record = {"messages": [HI, {"role": "assistant", "content": "BAD"} | key, HI, YO]}
    ids, loss_mask = render(dolma2, messages(tmp_path, record), TEMPLATES["olmo"])
    said = dolma2.decode([token for token, loss in zip(ids, loss_mask) if loss])
    assert said == ("BAD<|im_end|>" if learned else "") + "Yo<|endoftext|>"
    plain = {"messages": [HI, {"role": "assistant", "content": "BAD"}, HI, YO]}
    assert ids == render(dolma2, messages(tmp_path, plain), TEMPLATES["olmo"])[0]


def test_a_conversation_without_loss_is_refused(tmp_path, dolma2):
    with pytest.raises(BarError, match="no assistant turn that carries loss"):
        render(dolma2, messages(tmp_path, says(content="x", weight=0)), TEMPLATES["olmo"])


@pytest.mark.parametrize(
    "record, fault",
    [
        (says(content="x", weight=0.5), "message 2: weight is 0.5; only 0, 1, false and true"),
        (says(content="x", loss_mask=[0, 1]), r"loss_mask is \[0, 1\]"),
        (says(content="x", train="yes"), "train is 'yes'"),
        (says(content="x", train=True, weight=0), "weight and train contradict each other"),
        ({"messages": [HI | {"train": True}, YO]}, "message 1: train asks for loss on a user turn"),
        (says(content="x", lossWeight=0), "key 'lossWeight' would change what is learned"),
        (says(content="x", masked=True), "key 'masked' would change what is learned"),
        (says(content="x", images=["a.png"]), "key 'images' would change"),
        (says(refusal="No."), "key 'refusal' would change"),
        (says(content="x", function_calls="f()", tool_calls=[CALL]), "are given; keep one"),
        (says(tool_calls=[{"type": "custom", "custom": {}}]), "call 1 has no name"),
        (says(tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}]), "call 1 are list"),
        (
            says(tool_calls=[{"function": {"name": "f", "arguments": "x=1"}}]),
            "call 1 are text, but",
        ),
        (
            {"messages": [HI | {"function_calls": "f()"}, YO]},
            "function_calls don't belong to a turn",
        ),
        (says(content="x", functions="[]"), "functions don't belong to a turn of role assistant"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, YO]},
            "message 1: content has a part of type 'image_url'",
        ),
        ({"messages": [{"role": "user", "content": [7]}, YO]}, "part that is neither text"),
        ({"messages": CHAT, "images": ["a.png"]}, "column 'images' isn't text"),
        ({"messages": CHAT, "weight": 0.3}, "column 'weight' would change what is learned"),
        (
            {"messages": [{"role": "system", "content": "a"}, *CHAT], "system": "b"},
            "keep one of them",
        ),
        (
            {"messages": CHAT, "tools": [{"type": "function"}]},
            "function 1 that is offered has no name",
        ),
        ({"messages": CHAT, "tools": [WEATHER], "functions": [WEATHER]}, "keep one of them"),
        ({"prompt": "a", "completion": "b", "context": "c"}, "column 'context' would be left out"),
        ({"instruction": "a", "input": "b", "context": "c", "output": "d"}, "input and context"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference pair"),
        ({"chosen": CHAT, "rejected": CHAT}, "preference pair"),
        ({"conversations": [HI], "chosen": YO, "rejected": YO}, "preference pair"),
        *[
            (record | {name: value}, f"preference .column '{name}' labels the answer")
            for record in ({"prompt": "a", "completion": "b"}, {"messages": CHAT})
            for name, value in (
                ("label", False),
                ("label", 0),
                ("label", 1.0),
                ("label", "False"),
                ("kto_tag", True),
            )
        ],
        ({"prompt": "a", "response": "b", "input": "c"}, "column 'input' would be left out"),
        ({"prompt": [HI], "response": "b", "history": [["a", "b"]]}, "history is given beside"),
        ({"prompt": "a", "response": "b", "history": "c"}, "history must be a list of pairs"),
        (
            {"question": "a", "answer": "b"},
            r"column 'messages' is missing; there are question, answer, "
            r".* \(sharegpt, messages, prompt",
        ),
    ],
)
def test_what_has_no_place_is_refused(tmp_path, record, fault):
    with pytest.raises(BarError, match=fault) as error:
        load(tmp_path, record)
    assert "a.jsonl:1: " in str(error.value) and "\n" not in str(error.value)


def test_a_preference_after_other_records_is_refused(tmp_path):
    path, plain = tmp_path / "a.jsonl", {"prompt": "a", "completion": "b"}
    for later in (plain | {"label": False}, {"prompt": "a", "chosen": "b", "rejected": "c"}):
        path.write_text(f"{json.dumps(plain)}\n{json.dumps(later)}\n")
        with pytest.raises(BarError, match=r"a\.jsonl:2: this is a preference"):
            load_conversations(Source(path=str(path)), 0)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": CHAT, "label": 3},
        {"messages": CHAT, "label": "greeting"},
        {
            "messages": CHAT,
            "chosen": CHAT,
            "rejected": CHAT,
        },  # the chosen answer, as UltraFeedback has
        {"prompt": "Hi", "completion": "Yo", "label": None},
    ],
)
def test_what_is_no_preference_is_read(tmp_path, record):
    assert messages(tmp_path, record) == CHAT
    assert messages(tmp_path, {"prompt": "Hi", "label": 1}) == [HI]  # a prompt and its reference


def test_a_form_or_a_column_can_be_named(tmp_path):
    pair = {"chosen": CHAT, "rejected": CHAT}
    assert messages(tmp_path, pair, messages_column="chosen") == CHAT
    both = {"instruction": "Hi", "output": "Yo", "prompt": "Hi Yo"}
    assert messages(tmp_path, both, format="alpaca") == CHAT
    assert messages(tmp_path, both) == [{"role": "user", "content": "Hi Yo"}]
    with pytest.raises(BarError, match="column 'turns' is missing; there are messages"):
        load(tmp_path, {"messages": CHAT}, messages_column="turns")
    with pytest.raises(BarError, match="of the form messages, and its source is read as prompt"):
        load(tmp_path, {"messages": CHAT}, format="prompt_completion")
    path = tmp_path / "mixed.jsonl"
    path.write_text(
        "".join(
            json.dumps(r) + "\n"
            for r in ({"messages": CHAT}, {"conversations": [{"from": "human", "value": "Hi"}]})
        )
    )
    with pytest.raises(BarError, match=r"mixed\.jsonl:2: this is of the form sharegpt, and its"):
        load_conversations(Source(path=str(path)), 0)
    with pytest.raises(BarError, match="format 'dpo' is unknown; there are sharegpt, messages"):
        load(tmp_path, {"messages": CHAT}, format="dpo")
