"""What a rehearsal finds before any stage runs, and what is wrong with an export."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from megatron_bar.checkpoints.convert import export_hf
from megatron_bar.cli import main
from megatron_bar.data.chat_format import load_chat_format
from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.data.toy import CHAT_TEMPLATE, texts
from megatron_bar.launch.rehearse.examine import examine
from megatron_bar.launch.rehearse.proof import prove_export
from megatron_bar.methods.load import load_recipe
from megatron_bar.runtime.errors import BarError
from tests.launch.sample_data import write_lines
from tests.models_hf import imported, random_dense, random_experts

_TRAINING = dict(steps=20, sequence_length=128, global_batch_size=4, lr=1e-3)
NO_END = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
)
END_OUTSIDE = NO_END.replace("{% endgeneration %}", "{% endgeneration %}{{ eos_token }}")


def _chat(question: str, reply: str | None, **more: Any) -> dict[str, Any]:
    said = [] if reply is None else [{"role": "assistant", "content": reply}]
    return {"messages": [{"role": "user", "content": question}, *said], **more}


@pytest.fixture(scope="module")
def anchor(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("anchor")
    tokenizer = train_tokenizer(list(texts("general", "train", 20, 0)), 320, folder, CHAT_TEMPLATE)
    random_dense(vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(anchor, tmp_path, monkeypatch) -> dict[str, Any]:
    """One that is sound, and its files, which a test spoils."""
    chats = [_chat(f"{n} + {n}?", f"{2 * n}") for n in range(30)]
    write_lines(tmp_path / "chats.jsonl", chats)
    write_lines(
        tmp_path / "prompts.jsonl",
        [chat | {"answer": chat["messages"][1]["content"]} for chat in chats],
    )
    monkeypatch.chdir(tmp_path)
    return {
        "name": "faulty",
        "anchor": str(anchor),
        "domains": {
            "law": {
                "sft": {**_TRAINING, "data": [{"path": "chats.jsonl"}]},
                "rlvr": {
                    "steps": 5,
                    "prompt_length": 64,
                    "response_length": 32,
                    "global_batch_size": 32,
                    "prompts_per_step": 8,
                    "samples_per_prompt": 4,
                    "data": [{"path": "prompts.jsonl", "verifier": "math"}],
                },
                "tasks": [{"path": "prompts.jsonl", "verifier": "math"}],
            }
        },
        "route": {"training": dict(_TRAINING)},
    }


def _no_end(recipe: dict) -> None:
    Path("own.jinja").write_text(NO_END)
    recipe["chat_template"] = "own.jinja"


def _end_outside(recipe: dict) -> None:
    Path("own.jinja").write_text(END_OUTSIDE)
    recipe["chat_template"] = "own.jinja"


def _calls_end_otherwise(recipe: dict) -> None:
    """The template is sound, and so are plain chats."""
    Path("own.jinja").write_text(
        END_OUTSIDE.replace(
            "{% endgeneration %}{{ eos_token }}",
            "{{ m.function_calls }}{{ '<|pad|>' if m.function_calls else eos_token }}"
            "{% endgeneration %}",
        )
    )
    recipe["chat_template"] = "own.jinja"
    lines = Path("chats.jsonl").read_text().splitlines()
    lines[1] = json.dumps(
        {
            "messages": [
                {"role": "user", "content": "2 + 2?"},
                {"role": "assistant", "content": "", "function_calls": "add(2, 2)"},
            ]
        }
    )
    Path("chats.jsonl").write_text("\n".join(lines))


def _wrong_references(recipe: dict) -> None:
    write_lines(Path("prompts.jsonl"), [_chat("1 + 1?", "2", answer="3")] * 30)


def _a_verifier_that_likes_anything(recipe: dict) -> None:
    Path("mine.py").write_text("def score(prompt, response, reference):\n    return 1\n")
    recipe["domains"]["law"]["rlvr"]["data"][0]["verifier"] = "mine.py:score"


def _broken_references(recipe: dict) -> None:
    recipe["domains"]["law"]["rlvr"]["data"][0]["verifier"] = "safety"


def _typo_in_reference_column(recipe: dict) -> None:
    """A reply that is compared with itself always wins."""
    recipe["domains"]["law"]["rlvr"]["data"][0]["reference_column"] = "anwser"


def _long_prompt(recipe: dict) -> None:
    """One of many, which no small sample holds."""
    lines = Path("prompts.jsonl").read_text().splitlines() * 9
    lines[101] = json.dumps(_chat("word " * 700, "2", answer="2"))
    Path("prompts.jsonl").write_text("\n".join(lines))


def _long_prompts_of_rlvr(recipe: dict) -> None:
    recipe["domains"]["law"]["tasks"] = []
    recipe["domains"]["law"]["rlvr"]["prompt_length"] = 4096
    _long_prompt(recipe)


def _nothing_supervised(recipe: dict) -> None:
    write_lines(Path("silent.jsonl"), [_chat("word " * 400, "yes")] * 9)
    recipe["domains"]["law"]["sft"]["data"].append({"path": "silent.jsonl"})


def _last_of_ten(recipe: dict) -> None:
    for number in range(10):
        key = "messages" if number < 9 else "talk"
        write_lines(Path(f"part{number}.jsonl"), [{key: _chat("a", "b")["messages"]}] * 5)
    recipe["domains"]["law"]["sft"]["data"] = [{"path": f"part{n}.jsonl"} for n in range(10)]


def _last_line(recipe: dict) -> None:
    with open("chats.jsonl", "a") as file:
        file.write('{"messages": []}\n')


def _missing_shard(recipe: dict) -> None:
    folder = Path("anchor")
    random_dense(vocab_size=320).save_pretrained(folder, max_shard_size="20KB")
    train_tokenizer(["word"], 320, folder, CHAT_TEMPLATE)
    recipe["anchor"] = str(folder)
    max(folder.glob("*.safetensors")).unlink()


FAULTS = {
    _no_end: "law/sft: .*chats.jsonl:1: the chat template has no end token",
    _end_outside: "law/sft: .*chats.jsonl:1: the chat template ends replies with .* outside",
    _calls_end_otherwise: r"law/sft: .*chats.jsonl:2: no reply ends with a token at which an "
    r"answer stops \(<\|endoftext\|>",
    _wrong_references: "law/rlvr: .*prompts.jsonl:1: verifier math gives the reference answer no "
    "reward, nor that of .* more items of source prompts",
    _a_verifier_that_likes_anything: "law/rlvr: .*prompts.jsonl:1: verifier mine.py:score rewards "
    "a wrong answer, and so it does for .* more items of source",
    _broken_references: "law/rlvr: .*prompts.jsonl:1: a safety reference is refuse or comply",
    _long_prompt: "evaluate/.*: .*prompts.jsonl:102: the prompt has .* no room .* model's 256 ",
    _typo_in_reference_column: "law/rlvr: .*prompts.jsonl:1: column 'anwser', the source's ref",
    _long_prompts_of_rlvr: "law/rlvr: .*prompts.jsonl:102: the prompt has .* model's 256 positions",
    _nothing_supervised: "law/sft: source silent: of 9 conv.* carries loss among its first 128",
    _last_of_ten: "law/sft: .*part9.jsonl:1: column 'messages' is missing",
    _last_line: "law/sft: .*chats.jsonl:31: messages must be a list",
}


@pytest.mark.slow
@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__name__.strip("_"))
@pytest.mark.timeout(60)
def test_a_fault_is_a_line_before_any_stage_runs(
    spoil: Callable[[dict], None], recipe, tmp_path, capsys
):
    spoil(recipe)
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["rehearse", "recipe.yaml"]) == 1
    said = capsys.readouterr()
    faults = [line for line in said.out.splitlines() if line.startswith("fault: ")]
    pattern = re.compile(f"fault: {FAULTS[spoil]}")
    assert any(pattern.match(line) for line in faults), said.out
    assert "the recipe isn't ready to run; faults: " in said.err
    assert "stages to run" not in said.out and not (tmp_path / "runs").exists()


def test_an_item_that_its_stage_leaves_out_is_no_fault(recipe, anchor):
    with open("chats.jsonl", "a") as file:
        file.write(json.dumps(_chat("a", "<|im_end|>")) + "\n")
    faults = {}
    for on_bad_item in ("stop", "skip"):
        recipe["domains"]["law"]["sft"]["data"][0]["on_bad_item"] = on_bad_item
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
        loaded = load_recipe(Path("recipe.yaml"))
        examined = examine(loaded, load_chat_format(anchor, None), 256)
        faults[on_bad_item] = list(map(str, examined.faults))
    assert faults["skip"] == []
    assert examined.fitting(loaded.domains["law"].sft.data[0], "chats") > 5
    (fault,) = faults["stop"]
    assert "chats.jsonl:31: message 2 holds <|im_end|> as text" in fault


@pytest.mark.parametrize(
    "bad",
    [
        _chat("a <|im_start|>", "4", answer="4"),
        _chat("a", "4"),
        _chat("word " * 700, "4", answer="4"),
    ],
    ids=["spelt", "no reference", "long"],
)
def test_a_prompt_that_its_stage_leaves_out_is_no_fault(bad, recipe, anchor):
    with open("prompts.jsonl", "a") as file:
        file.write(json.dumps(bad) + "\n")
    law = recipe["domains"]["law"]
    faults = {}
    for on_bad_item in ("stop", "skip"):
        for source in (law["rlvr"]["data"][0], law["tasks"][0]):
            source["on_bad_item"] = on_bad_item
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
        examined = examine(load_recipe(Path("recipe.yaml")), load_chat_format(anchor, None), 256)
        faults[on_bad_item] = list(map(str, examined.faults))
    assert faults["skip"] == []
    assert faults["stop"] and all("prompts.jsonl:31: " in fault for fault in faults["stop"])
    assert re.match(r"prompts: (\d+) of \1 reference answers", examined.found["law/rlvr"][0])


def test_an_anchor_with_a_missing_shard_is_reported(recipe, capsys):
    _missing_shard(recipe)
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["rehearse", "recipe.yaml"]) == 1
    assert "lacks the weights, model-000" in capsys.readouterr().out


def test_a_layout_that_does_not_fit_the_real_model(recipe, anchor, capsys):
    """The small model would fit anywhere."""
    recipe["anchor"] = "OLMo-2-1124-13B"
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["rehearse", "recipe.yaml", "--tokenizer", str(anchor)]) == 1
    said = capsys.readouterr().out
    assert "fault: law/sft: needs " in said and "GiB of a GPU with 80 GiB; " in said


def test_a_folder_that_is_not_a_rehearsals_is_left_alone(recipe, tmp_path, capsys):
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["rehearse", "recipe.yaml", "--keep", str(tmp_path)]) == 1
    assert "is no rehearsal's folder" in capsys.readouterr().err
    assert Path("chats.jsonl").is_file()


@pytest.fixture(scope="module")
def exported(tmp_path_factory, anchor) -> tuple[Path, Path]:
    """A checkpoint with a tokenizer, and its export."""
    folder = tmp_path_factory.mktemp("exported")
    tokenizer = AutoTokenizer.from_pretrained(anchor)
    (folder / "hf").mkdir()
    tokenizer.save_pretrained(folder / "hf")
    checkpoint = imported(random_experts(2, vocab_size=len(tokenizer)), folder)
    export_hf(checkpoint, folder / "export")
    return checkpoint, folder / "export"


def test_a_sound_export_passes(exported):
    said = prove_export(*exported, CHAT_TEMPLATE)
    assert said[0].startswith("transformers loads it in float32") and len(said) == 2


@pytest.mark.parametrize(
    "template, message",
    [
        (None, "has no chat template"),
        ("{{ messages[0].content }}", "template asks 'What is 2 .*', and the model was trained on"),
    ],
)
def test_an_export_without_the_template_it_was_trained_with(template, message, exported, tmp_path):
    checkpoint, export = exported
    tokenizer = AutoTokenizer.from_pretrained(export)
    tokenizer.chat_template = template
    other = Path(shutil.copytree(export, tmp_path / "other"))
    (other / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(other)
    with pytest.raises(BarError, match=message):
        prove_export(checkpoint, other, CHAT_TEMPLATE)
