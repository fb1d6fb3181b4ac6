"""Tokenizers of whichever transformers, and what is refused of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.checkpoints.tokenizer_files import load_tokenizer
from megatron_bar.runtime.errors import BarError
from tests.models_hf import TALKING, random_dense, talking

DOLMA2 = Path(__file__).parents[3] / "shared" / "data" / "tokenizer" / "allenai_dolma2.json"
# tokenizer_config.json as transformers 5 writes it.
NEW_CONFIG = {
    "backend": "tokenizers",
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|endoftext|>",
    "extra_special_tokens": ["<|im_start|>", "<|im_end|>"],
    "is_local": True,
    "local_files_only": False,
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": 10**30,
    "pad_token": "<|pad|>",
    "tokenizer_class": "TokenizersBackend",
}


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    return talking(random_dense(**TALKING), tmp_path_factory.mktemp("old") / "hf")


@pytest.fixture
def new(tmp_path) -> Path:
    """The same as `old`, with what transformers 5 leaves of a tokenizer."""
    folder = talking(random_dense(**TALKING), tmp_path / "hf")
    (folder / "tokenizer_config.json").write_text(json.dumps(NEW_CONFIG))
    (folder / "special_tokens_map.json").unlink()
    return folder


def _facts(tokenizer):
    text = "<|im_start|>user\n3 + 4?<|im_end|>\n<functions>"
    return (
        tokenizer(text)["input_ids"],
        tokenizer.all_special_tokens,
        tokenizer.eos_token,
        tokenizer.pad_token,
        tokenizer.chat_template,
        len(tokenizer),
    )


def test_a_tokenizer_of_transformers_5_is_the_same_one(new, old, tmp_path, said_by_transformers):
    import_hf(new, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "exported")
    expected = _facts(load_tokenizer(old))
    for folder in (new, tmp_path / "checkpoint", tmp_path / "exported"):
        tokenizer = load_tokenizer(folder)
        assert _facts(tokenizer) == expected and tokenizer.name_or_path == str(folder)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert _facts(tokenizer)[:4] == expected[:4]
    assert not said_by_transformers.records


def test_tokenizer_json_alone_is_enough(old, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((old / "tokenizer.json").read_bytes())
    assert (
        load_tokenizer(tmp_path)("3 + 4")["input_ids"] == load_tokenizer(old)("3 + 4")["input_ids"]
    )
    with pytest.raises(BarError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "sizes, message",
    [
        (
            {"vocab_size": 399},
            "the tokenizer's token '</function_calls>' has id 399, and the model's "
            "399 rows end at 398",
        ),
        ({"vocab_size": 10}, "has id 399, and the model's 10 rows"),
    ],
)
def test_a_token_without_a_row_is_refused(sizes, message, old, tmp_path):
    folder = talking(random_dense(**TALKING | sizes), tmp_path / "hf")
    with pytest.raises(BarError) as raised:
        import_hf(folder, tmp_path / "checkpoint")
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "checkpoint").exists()


def test_a_token_that_its_config_adds_counts(old, tmp_path):
    folder = talking(random_dense(**TALKING), tmp_path / "hf")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<new>"}))
    with pytest.raises(BarError, match="token '<new>' has id 400"):
        import_hf(folder, tmp_path / "checkpoint")


@pytest.mark.slow
@pytest.mark.skipif(not DOLMA2.is_file(), reason="the dolma2 tokenizer isn't beside the project")
def test_olmo_2_has_more_rows_than_tokens(tmp_path, said_by_transformers):
    sizes = dict(num_hidden_layers=1, hidden_size=12, intermediate_size=8)
    for rows in (100_352, 100_277):
        folder = tmp_path / str(rows)
        random_dense(vocab_size=rows, **sizes).save_pretrained(folder)
        (folder / "tokenizer.json").write_bytes(DOLMA2.read_bytes())
    import_hf(tmp_path / "100352", tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "exported")
    assert AutoTokenizer.from_pretrained(tmp_path / "exported")("17")["input_ids"] == [1114]
    assert not said_by_transformers.records
    with pytest.raises(BarError, match="has id 100277, and the model's 100277 rows end at 100276"):
        import_hf(tmp_path / "100277", tmp_path / "refused")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("tokenizer_config.json", "[]", "holds a list, not a dict"),
        ("tokenizer_config.json", "{", "not valid JSON"),
        (
            "tokenizer_config.json",
            '{"tokenizer_class": "Unheard"}',
            "make no tokenizer: Tokenizer cla",
        ),
        ("tokenizer.json", "{}", "make no tokenizer"),
    ],
)
def test_a_damaged_tokenizer_is_reported_in_a_line(name, content, message, tmp_path):
    folder = talking(random_dense(**TALKING), tmp_path / "hf")
    (folder / name).write_text(content)
    with pytest.raises(BarError) as raised:
        import_hf(folder, tmp_path / "checkpoint")
    assert message in str(raised.value) and "\n" not in str(raised.value)
