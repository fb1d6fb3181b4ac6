"""Real problems as the files that recipes name, and OLMo's tokenizer as a folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

SHARED = Path(__file__).parents[2].parent / "shared" / "data"

Record = dict[str, Any]


def write_lines(path: Path, records: Iterable[Record]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_tokenizer(folder: Path, template: str | None) -> None:
    """dolma2, as published models of OLMo-2 carry it."""
    PreTrainedTokenizerFast(
        tokenizer_file=str(SHARED / "tokenizer" / "allenai_dolma2.json"),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
        chat_template=template,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)


def write_sample_data(folder: Path, count: int = 40) -> None:
    """All files that examples/bar-*.yaml name, `count` examples in each, in `folder`."""
    for domain, pairs in _CHATS.items():
        chats = [{"messages": messages} for messages in islice(pairs(), count)]
        for name in (f"{domain}_sft", f"{domain}_chat"):
            write_lines(folder / f"{name}.jsonl", chats)
    for domain in ("math", "code"):
        texts = [
            {"text": "\n".join(message["content"] for message in messages)}
            for messages in islice(_CHATS[domain](), count)
        ]
        for name in (f"{domain}_midtrain", f"{domain}_text"):
            write_lines(folder / f"{name}.jsonl", texts)
    write_lines(
        folder / "math_prompts.jsonl",
        (
            {"messages": _asked(item["question"]), "answer": item["answer"]}
            for item in _lines("math/gsm8k_train.jsonl", count)
        ),
    )
    write_lines(
        folder / "code_prompts.jsonl",
        (
            {"messages": _asked(item["text"]), "answer": json.dumps(item)}
            for item in _lines("code/mbpp.jsonl", count)
        ),
    )


def _asked(question: str, reply: str | None = None, **more: str) -> list[Record]:
    said = [] if reply is None else [{"role": "assistant", "content": reply}]
    return [{"role": "user", "content": question, **more}, *said]


def _lines(name: str, count: int | None = None) -> Iterator[Record]:
    with open(SHARED / name, encoding="utf-8") as file:
        yield from map(json.loads, islice(file, count))


def _math() -> Iterator[list[Record]]:
    for item in _lines("math/gsm8k_train.jsonl"):
        yield _asked(item["question"], item["answer"])


def _code() -> Iterator[list[Record]]:
    for item in _lines("code/mbpp.jsonl"):
        yield _asked(item["text"], f"```python\n{item['code']}\n```")


def _general() -> Iterator[list[Record]]:
    for item in _lines("general/self_instruct_seed_tasks.jsonl"):
        given, wanted = (item["instances"][0][key] for key in ("input", "output"))
        yield _asked(f"{item['instruction']}\n{given}".strip(), wanted)


def _safety() -> Iterator[list[Record]]:
    with open(SHARED / "safety" / "xstest_first15_per_type.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            refused = row["label"] == "unsafe"
            yield _asked(
                row["prompt"],
                "I'm sorry, but I can't help with that."
                if refused
                else "Of course. Here is what I know about it.",
            )


def _tool_use() -> Iterator[list[Record]]:
    answers = _lines("tool_use/possible_answer/BFCL_v4_simple_python.json")
    for item, answer in zip(_lines("tool_use/BFCL_v4_simple_python.json"), answers):
        ((name, values),) = answer["ground_truth"][0].items()
        arguments = ", ".join(
            f"{key}={options[0]!r}" for key, options in values.items() if options[0] != ""
        )
        yield [
            {
                "role": "user",
                "content": item["question"][0][0]["content"],
                "functions": json.dumps(item["function"]),
            },
            {"role": "assistant", "content": None, "function_calls": f"{name}({arguments})"},
        ]


_CHATS = {
    "math": _math,
    "code": _code,
    "general": _general,
    "safety": _safety,
    "tool_use": _tool_use,
    "tool": _tool_use,
}
