"""The real OLMo-2 tokenizer and real examples, from the folder `shared` beside the project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from megatron_bar.data import toy
from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.layout import Layout

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"no real data: {SHARED} isn't there")
    return SHARED


@pytest.fixture(scope="session")
def dolma2(shared: Path) -> PreTrainedTokenizerFast:
    eos = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_file=str(shared / "tokenizer" / "allenai_dolma2.json"),
        bos_token=eos,
        eos_token=eos,
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def gsm8k(shared: Path) -> list[dict[str, Any]]:
    """The first 200 training problems as records with messages."""
    with open(shared / "math" / "gsm8k_train.jsonl", encoding="utf-8") as file:
        problems = [json.loads(line) for line, _ in zip(file, range(200))]
    return [
        {
            "messages": [
                {"role": "user", "content": problem["question"]},
                {"role": "assistant", "content": problem["answer"]},
            ],
            "answer": problem["answer"].rpartition("####")[2].strip(),
        }
        for problem in problems
    ]


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that needs no file from outside."""
    texts = toy.texts("math", "train", 50, 0)
    return train_tokenizer(texts, 400, tmp_path_factory.mktemp("tokenizer"), toy.CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def one_process():
    """Megatron's groups over this process alone."""
    with process_groups(Layout()):
        yield
