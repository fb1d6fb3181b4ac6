"""`megatron-bar data`: before a run, without its ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from megatron_bar.cli import main
from megatron_bar.data import toy
from megatron_bar.data.store import StoredDocuments
from megatron_bar.data.tokenizer import train_tokenizer

TOY = Path(__file__).parents[2] / "examples" / "toy.yaml"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe whose anchor is no more than a tokenizer: data need no model."""
    folder = tmp_path_factory.mktemp("data")
    texts = toy.texts("math", "train", 50, 0)
    train_tokenizer(texts, 400, folder / "anchor", toy.CHAT_TEMPLATE)
    (folder / "sums.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    chats = [{"toy": "math", "count": 40}, {"toy": "general", "count": 20}]
    training = dict(sequence_length=192, global_batch_size=4, steps=6)
    content = {
        "name": "mini",
        "runs": str(folder / "runs"),
        "anchor": str(folder / "anchor"),
        "domains": {
            "math": {
                "midtrain": training
                | {
                    "data": [
                        {"path": str(folder / "sums.jsonl"), "weight": 3},
                        {"toy": "code", "count": 30, "weight": 1},
                    ]
                },
                "sft": training | {"data": chats},
            }
        },
        "route": {"fraction": 0.5, "training": training},
    }
    (folder / "mini.yaml").write_text(yaml.safe_dump(content))
    return folder / "mini.yaml"


def _prepared(recipe: Path) -> dict[str, int]:
    manifests = (recipe.parent / "runs" / "mini" / "data").rglob("manifest.json")
    return {path.parent.name.rpartition("-")[0]: path.stat().st_mtime_ns for path in manifests}


def test_prepare_then_prepare_again(recipe, capsys):
    assert main(["data", "prepare", str(recipe), "math/midtrain", "--processes", "1"]) == 0
    assert set(_prepared(recipe)) == {"sums", "code"}
    assert main(["data", "prepare", str(recipe), "seed=0"]) == 0
    made = _prepared(recipe)
    assert set(made) == {"sums", "code", "math", "general"}  # route samples what sft made
    assert main(["data", "prepare", str(recipe)]) == 0
    assert _prepared(recipe) == made
    shown = capsys.readouterr().out
    folder = next((recipe.parent / "runs" / "mini" / "data" / "texts").glob("sums-*"))
    assert f"sums: {StoredDocuments(folder).tokens} tokens in 50 documents" in shown


@pytest.mark.parametrize(
    "stage, source",
    [
        ("math/midtrain", "sums"),
        ("math/sft", "general"),
        ("routed", "math"),
    ],
)
def test_show(recipe, stage, source, capsys):
    arguments = ["data", "show", str(recipe), stage, "--items", "40", "--step", "2"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert f"{stage}, step 2 of 6: 4 rows" in shown
    assert f"source {source}: " in shown and "⟦" in shown
    assert ("mixture" if stage == "math/midtrain" else "% full") in shown
    assert main(arguments) == 0
    assert capsys.readouterr().out == shown
    assert main([*arguments[:-1], "3"]) == 0
    assert capsys.readouterr().out != shown


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["prepare", "RECIPE", "math/rlvr"], "no stage 'math/rlvr' reads prepared data; there are"),
        (["show", "RECIPE", "merged"], "no stage 'merged'"),
        (["show", "RECIPE", "math/sft", "--step", "0"], "counted from 1"),
        (["show", "RECIPE", "math/sft", "--step", "7"], "math/sft has 6 steps"),
        (["prepare", "RECIPE", "anchor=nowhere"], "nowhere is not a folder"),
        (["prepare", "RECIPE", "chat_template=chatml"], "'chatml' is unknown"),
        (["prepare", str(TOY), "runs=OUT"], "trains its own tokenizer"),
        (
            [
                "prepare",
                "RECIPE",
                "name=x",
                "domains.math.sft.data=[{toy: math, count: 2, weight: 0}]",
            ],
            "weight is 0",
        ),
    ],
)
def test_wrong_input_gets_one_line(recipe, arguments, message, tmp_path, capsys):
    filled = [a.replace("RECIPE", str(recipe)).replace("OUT", str(tmp_path)) for a in arguments]
    assert main(["data", *filled]) == 1
    shown = capsys.readouterr().err
    assert message in shown and len(shown.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "stage, overrides, message",
    [
        ("math/sft", "domains.math.sft.sequence_length=60", "truncated"),
        (
            "math/sft",
            "domains.math.sft.sequence_length=60 domains.math.sft.overlong=drop",
            "dropped as too long",
        ),
        (
            "math/midtrain",
            "domains.math.midtrain.steps=null domains.math.midtrain.tokens=10k",
            "step 1 of 14:",
        ),  # 10,000 / (4 x 192)
        (
            "math/midtrain",
            "domains.math.midtrain.steps=null domains.math.midtrain.epochs=1",
            "step 1 of 4:",
        ),  # 2,679 tokens make 14 rows
    ],
)
def test_what_the_recipe_tells_is_done(recipe, stage, overrides, message, capsys):
    assert main(["data", "show", str(recipe), stage, *overrides.split()]) == 0
    assert message in capsys.readouterr().out.replace("\n", " ")


CHAT = [
    {"role": "user", "content": "Weather in Bergen?"},
    {"role": "assistant", "content": "Rain."},
]
CALL = {"function": {"name": "weather", "arguments": '{"city": "Bergen"}'}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def _with_data(recipe: Path, folder: Path, records: list, *more: str, **keys: str) -> list[str]:
    """Arguments for a recipe whose SFT reads these records (text as it is), into an own run."""
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    (folder / "chat.jsonl").write_text("".join(f"{line}\n" for line in lines))
    source = {"path": str(folder / "chat.jsonl")} | keys
    return [
        str(recipe),
        "math/sft",
        f"runs={folder}/runs",
        f"domains.math.sft.data=[{json.dumps(source)}]",
        *more,
    ]


@pytest.mark.parametrize(
    "record, learned, read",
    [
        (
            {
                "messages": [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [CALL]}],
                "tools": [WEATHER],
            },
            '<function_calls>weather(city="Bergen")</function_calls><|endoftext|>',
            '<functions>[{"name": "weather", "parameters": {}}]</functions>',
        ),
        (
            {"messages": [*CHAT[:1], {"role": "assistant", "content": "Bad.", "weight": 0}, *CHAT]},
            "Rain.<|endoftext|>",
            "assistant\nBad.<|im_end|>",
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Rain."},
                ]
            },
            "Rain.<|endoftext|>",
            "user\nHi",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, CHAT[1]]},
            "Rain.<|endoftext|>",
            "user\nHi",
        ),
    ],
    ids=["tools", "weight", "sharegpt", "parts"],
)
def test_conversations_as_they_exist(recipe, record, learned, read, tmp_path, capsys):
    arguments = _with_data(
        recipe,
        tmp_path,
        [record],
        "chat_template=olmo",
        "domains.math.sft.global_batch_size=1",
        "domains.math.sft.sequence_length=512",
    )
    assert main(["data", "show", *arguments]) == 0
    shown = capsys.readouterr().out
    assert f"\u27e6{learned}\u27e7" in shown and shown.count("\u27e6") == 1 and read in shown
    assert "chat: read as " in shown
    assert "warning: chat_template olmo is another format than the model's own" in shown


@pytest.mark.parametrize(
    "bad, fault",
    [
        ('{"messages": [{"role": "user", "content": "Hi \\ud83d"}]}', "half of a character"),
        (f'{{"messages": [], "x": {"[" * 10**5}{"]" * 10**5}}}', "nested too deep"),
        (
            {"messages": [CHAT[0], CHAT[1] | {"reasoning_content": "Bergen is wet"}]},
            "has reasoning_content, which the chat template doesn't show",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "is a preference pair"),
    ],
    ids=["surrogate", "deep", "reasoning", "preference"],
)
def test_a_bad_item_stops_or_is_listed(recipe, bad, fault, tmp_path, capsys):
    good = {"messages": CHAT}
    assert main(["data", "prepare", *_with_data(recipe, tmp_path, [good, bad])]) == 1
    said = capsys.readouterr().err.strip()
    assert f"{tmp_path}/chat.jsonl:2: " in said and fault in said and "\n" not in said
    arguments = _with_data(recipe, tmp_path, [good, bad, good], on_bad_item="skip")
    assert main(["data", "prepare", *arguments]) == 0
    said = capsys.readouterr().out
    assert f"1 bad item was left out, such as {tmp_path}/chat.jsonl:2: " in said and fault in said
    (listed,) = tmp_path.glob("runs/mini/data/chats/chat-*/left_out.jsonl")
    assert fault in listed.read_text() and str(listed) in said


def test_a_number_without_end_does_not_matter(recipe, tmp_path):
    record = f'{json.dumps({"messages": CHAT})[:-1]}, "id": {"9" * 5000}}}'
    assert main(["data", "prepare", *_with_data(recipe, tmp_path, [record])]) == 0


def test_the_own_format_needs_no_marks(recipe, tmp_path, capsys):
    """A template without {% generation %}, as OLMo-2's own is, teaches the replies all the same."""
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
        "{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    arguments = _with_data(
        recipe,
        tmp_path,
        [{"messages": CHAT}],
        f"chat_template={template}",
        "domains.math.sft.global_batch_size=1",
    )
    assert main(["data", "show", *arguments]) == 0
    assert "assistant\n\u27e6Rain.<|im_end|>\u27e7" in capsys.readouterr().out
