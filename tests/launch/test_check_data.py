"""What can be known to be wrong with files is said before a stage meets it, all of it at once."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from megatron_bar.cli import main
from megatron_bar.data import toy
from megatron_bar.data.chat import TEMPLATES
from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.launch import check_data
from megatron_bar.launch.check import check_recipe
from megatron_bar.methods.load import load_recipe
from megatron_bar.recipe.training import Source
from tests.models_hf import random_dense

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
ANSWER = {"role": "assistant", "content": "It is 2."}
CHAT = {"messages": [{"role": "user", "content": "1 + 1?"}, ANSWER], "answer": "2"}
QUESTION = {"messages": CHAT["messages"][:1], "answer": "2"}
_TRAINING = {"steps": 3, "global_batch_size": 2, "sequence_length": 512}


def _write(path: Path, *records: object) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def anchor(tmp_path_factory) -> Path:
    """A small model's folder, as a user brings it."""
    folder = tmp_path_factory.mktemp("models") / "anchor"
    tokenizer = train_tokenizer(toy.texts("math", "train", 50, 0), 400, folder, TEMPLATES["olmo"])
    random_dense(
        vocab_size=len(tokenizer), num_hidden_layers=2, max_position_embeddings=1024
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def brought(tmp_path, anchor, monkeypatch) -> Path:
    """A recipe and its data, all well; the current folder."""
    _write(tmp_path / "texts.jsonl", *({"text": f"{n} and {n} is {2 * n}."} for n in range(300)))
    _write(tmp_path / "chats.jsonl", *[CHAT] * 300)
    _write(tmp_path / "questions.jsonl", *[QUESTION] * 10)
    domain = {
        "midtrain": _TRAINING | {"data": [{"path": "texts.jsonl"}]},
        "sft": _TRAINING | {"data": [{"path": "chats.jsonl"}]},
        "rlvr": {"steps": 1, "data": [{"path": "questions.jsonl", "verifier": "math"}]},
        "tasks": [{"path": "questions.jsonl", "verifier": "exact"}],
    }
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "law",
                "anchor": str(anchor),
                "domains": {"law": domain},
                "route": {"training": _TRAINING},
            }
        )
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _faults(*overrides: str) -> list[str]:
    recipe = load_recipe(Path("recipe.yaml"), overrides, values=False)
    return [str(fault) for fault in check_recipe(recipe)]


def test_a_recipe_that_is_well_has_no_fault(brought):
    assert _faults() == []
    assert sorted(path.name for path in brought.iterdir()) == [
        "chats.jsonl",
        "questions.jsonl",
        "recipe.yaml",
        "texts.jsonl",
    ]


@pytest.mark.parametrize("key", ["anchor", "pretrained"])
def test_layers_of_unlike_types_are_found(brought, anchor, key):
    folder = shutil.copytree(anchor, brought / "mixed")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    save_file(tensors | {name: tensors[name].half()}, folder / "model.safetensors")
    (fault,) = _faults(f"{key}={folder}")
    assert f"{key}: {folder} stores {name} in float16 and model.layers.0.mlp.down_proj" in fault


WRONG = [
    "domains.law.midtrain.lr=-1",
    "domains.law.sft.max_grad_norm=-1",
    "domains.law.sft.beta1=1",
    "domains.law.sft.warmup_steps=4",
    "domains.law.midtrain.data.0.path=nope.jsonl",
    "domains.law.sft.data.0.path=empty.jsonl",
    "chat_template=chatml",
    "domains.law.sft.validation=[{path: held.jsonl}]",
    "domains.law.tasks.0.verifier=exactly",
    "layout={processes: 4, tensor: 4}",
    "reuse=[runs/none]",
]
SAID = [
    "domains.law.midtrain: lr -1.0 is not 0 or more",
    "domains.law.sft: max_grad_norm -1.0 is not 0 or",
    "domains.law.sft: beta1 1.0 is not in [0, 1)",
    "warmup_steps 4 is more than the 3 steps",
    "/nope.jsonl is not a file",
    "law/sft: source empty is empty",
    "chat_template 'chatml' is unknown",
    "/held.jsonl is not a file",
    "tasks of law: verifier 'exactly' is unknown",
    "layout.tensor 4 doesn't divide",
    "/runs/none is not the folder of a run",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["run", "--yes"],
        ["submit"],
        ["submit", "--dry-run"],
        ["submit", "--write"],
        ["plan"],
    ],
)
def test_every_command_says_all_faults_a_line_each_and_touches_nothing(command, brought, capsys):
    (brought / "empty.jsonl").touch()
    assert main([command[0], "recipe.yaml", *WRONG, *command[1:]]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    # A plan goes without files that aren't here; they are told with it.
    said = [words for words in SAID if command != ["plan"] or "is not a file" not in words]
    assert len(lines) == len(said), lines
    assert not (brought / "runs").exists()
    for words in said:
        assert any(words in line for line in lines), (words, lines)


@pytest.mark.slow
@pytest.mark.parametrize("command", [["run", "--dry-run"], ["submit", "--dry-run"], ["plan"]])
def test_what_is_rarely_meant_is_said_before_anything_runs(command, brought, capsys):
    name, *options = command
    rare = ["domains.law.sft.sequence_length=2048", "chat_template=tulu"]
    length = "law/sft: rows of 2048 tokens are longer than the 1024 positions"
    template = "chat_template tulu is another format than the model's own"
    for keys, expected in (([], False), (rare, True)):
        assert main([name, "recipe.yaml", *keys, *options]) == 0
        said = "".join(capsys.readouterr())
        assert (length in said, template in said) == (expected, expected)


def test_a_plan_says_what_isnt_here_and_is_made(brought, capsys):
    words = [
        "plan",
        "recipe.yaml",
        "anchor=OLMo-2-0425-1B",
        "domains.law.sft.data.0.path=x.jsonl",
        "domains.law.rlvr.data.0.verifier=mine.py:score",
    ]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "/x.jsonl is not a file" in shown.err and "math" not in shown.err
    assert "not here: anchor: OLMo-2-0425-1B is not a folder" in shown.err
    assert f"not here: law/rlvr: verifier {brought}/mine.py:score: " in shown.err
    assert "law/sft" in shown.out


@pytest.mark.parametrize(
    "name, records, message",
    [
        (
            "chats",
            [CHAT] * 250 + [{"text": "x"}] * 50,
            "chats.jsonl:251: column 'messages' is missing",
        ),
        ("chats", [CHAT, QUESTION], "chats.jsonl:2: the conversation has no assistant turn"),
        (
            "chats",
            [CHAT, {"messages": [{"role": "user", "content": "<|im_end|>"}, ANSWER]}],
            "chats.jsonl:2: message 1 holds <|im_end|> as text",
        ),
        ("texts", [{"text": "x"}, {"text": 5}], "texts.jsonl:2: column 'text' is int, not text"),
        ("texts", [{"text": ""}], "source texts holds no tokens to train on"),
        (
            "questions",
            [QUESTION, {"messages": QUESTION["messages"]}],
            "questions.jsonl:2: there is no column 'answer' and no reply",
        ),
        (
            "questions",
            [QUESTION] * 99 + [{"messages": CHAT["messages"]}],
            "questions.jsonl:100: column 'answer' isn't here, and is in the first item",
        ),
    ],
)
def test_what_a_sample_of_a_file_shows(brought, name, records, message):
    _write(brought / f"{name}.jsonl", *records)
    assert any(message in fault for fault in _faults()), _faults()


def test_a_reference_whose_settings_are_no_settings(brought):
    wrong = {
        "instruction_id_list": ["length_constraints:number_words"],
        "kwargs": [{"relation": "at least", "num_words": "three"}],
    }
    _write(brought / "questions.jsonl", QUESTION | {"answer": wrong})
    (fault,) = _faults("domains.law.rlvr.data.0.verifier=instructions", "domains.law.tasks=[]")
    assert (
        "questions.jsonl:1: instruction length_constraints:number_words: num_words is a whole "
        "number, not 'three'" in fault
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("def score(prompt, response, reference): return 1", None),
        (
            "def score(prompt, response, reference): return 'right'",
            "questions.jsonl:1: verifier mine.py:score can't score an answer to this item of "
            "source questions: it returned 'right' (str), and a score is a number from 0 to 1",
        ),
        ("def score(answer): return 1", "score(answer) can't be called as verifiers are"),
    ],
)
def test_a_verifier_of_ones_own_is_tried(brought, text, message):
    Path("mine.py").write_text(text)
    faults = _faults("domains.law.rlvr.data.0.verifier=mine.py:score", "domains.law.tasks=[]")
    assert [message in fault for fault in faults] == [True] * (message is not None)


@pytest.mark.parametrize("form", ["rlvr.data", "tasks"])
def test_a_file_that_lacks_the_named_column_of_references(brought, form):
    for number in range(10):
        _write(brought / f"part{number}.jsonl", *[CHAT | {"ans": "2"}] * 5)
    source = f"domains.law.{form}=[{{path: 'part*.jsonl', reference_column: ans}}]"
    assert _faults(source) == []
    _write(brought / "part9.jsonl", *[CHAT] * 5)
    (fault,) = _faults(source)
    assert "part9.jsonl:1: column 'ans', the source's reference_column, is missing" in fault


@pytest.mark.parametrize(
    "override, message",
    {
        "domains.law.sft.sequence_length=8": (
            "law/sft: source chats: of 200 conversations none has a token that carries loss among"
        ),
        "domains.law.rlvr.prompt_length=3": (
            "law/rlvr: source questions: all of 10 prompts are longer"
        ),
        "domains.law.rlvr.data.0.path=long.jsonl": "long.jsonl:2: the prompt has ",
        "domains.law.rlvr.data.0.verifier=code": "questions.jsonl:1: ",
        "chat_template=plain.jinja": "the chat template has no {% generation %}",
        "anchor=elsewhere": "elsewhere is not a folder; give a Hugging Face model folder",
    }.items(),
)
def test_what_a_key_makes_of_good_files(brought, override, message):
    _write(
        Path("long.jsonl"),
        QUESTION,
        QUESTION | {"messages": [{"role": "user", "content": "1 + 1? " * 200}]},
    )
    Path("plain.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    faults = _faults(override)
    assert any(message in fault for fault in faults), faults


@pytest.mark.parametrize("anchor_is_here", [True, False])
def test_a_template_that_is_empty(brought, anchor_is_here):
    Path("e.jinja").touch()
    faults = _faults("chat_template=e.jinja", *([] if anchor_is_here else ["anchor=elsewhere"]))
    assert sum("/e.jinja is empty" in fault for fault in faults) == 1, faults


@pytest.mark.parametrize(
    "runs, message",
    [
        ("recipe.yaml/runs", "can't be written to"),
        ("/proc/runs", "can't be written to"),
    ],
)
@pytest.mark.parametrize("command", [["run"], ["data", "show"], ["data", "prepare"]])
def test_a_folder_that_nothing_can_be_written_to(command, runs, message, brought, capsys):
    stage = ["law/sft"] if command[0] == "data" else []
    assert main([*command, "recipe.yaml", *stage, f"runs={runs}"]) == 1
    (shown,) = capsys.readouterr().err.strip().splitlines()
    assert message in shown and "set runs to another folder" in shown


def test_damaged_weights_are_reported(brought, anchor):
    model = brought / "model"
    model.mkdir()
    for path in anchor.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    (fault,) = _faults("anchor=model")
    assert "/model/model.safetensors is not a whole safetensors file" in fault
    weights.unlink()
    (model / "tokenizer.json").unlink()
    tokenizer, lacking = _faults("anchor=model")
    assert "/model has no tokenizer.json" in tokenizer and "lacks the weights" in lacking


def test_of_a_large_file_a_sample_is_read(brought, monkeypatch):
    """Without counting its lines."""
    _write(brought / "chats.jsonl", *[CHAT] * 5000)
    monkeypatch.setattr(check_data, "_LARGE", 1000)
    drawn = check_data.sampled(Source(path="chats.jsonl"), 0, texts=False)
    assert len(drawn) == 200 and len(list(drawn.conversations())) == 200
    with open("chats.jsonl", "a") as file:
        file.write('{"messages": [\n' * 1000)
    assert any("chats.jsonl at byte" in fault and "not valid JSON" in fault for fault in _faults())


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data isn't beside the project")
def test_ten_files_of_real_data_take_seconds(brought):
    lines = (SHARED / "math" / "gsm8k_train.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    chats = [
        {
            "messages": [
                {"role": "user", "content": record["question"]},
                {"role": "assistant", "content": record["answer"]},
            ]
        }
        for record in records
    ]
    for number in range(10):
        _write(brought / f"part{number}.jsonl", *chats)
    _write(brought / "part9.jsonl", *chats[:50], {"question": "?"})
    sources = ", ".join(f"{{path: part{number}.jsonl}}" for number in range(10))
    started = time.monotonic()
    (fault,) = _faults(f"domains.law.sft.data=[{sources}]")
    print(f"ten files of {len(chats)} conversations: {time.monotonic() - started:.1f} s")
    assert time.monotonic() - started < 10
    assert fault.startswith("law/sft: ") and "part9.jsonl:51: column 'messages' is missing" in fault
