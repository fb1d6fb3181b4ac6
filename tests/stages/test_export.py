"""An export is talked to as its model was trained: by transformers, and in plain Jinja."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_bar.checkpoints.convert import import_hf
from megatron_bar.checkpoints.tokenizer_files import load_tokenizer
from megatron_bar.cli import main
from megatron_bar.data import chat
from megatron_bar.data.chat_format import load_chat_format
from megatron_bar.methods import context_of, stage_graph
from megatron_bar.methods.load import load_recipe
from megatron_bar.stages.context import identity
from megatron_bar.stages.work.tokenizer_files import trained_tokenizer_files
from tests.models_hf import TALKING, random_experts, talking

ASK = {"role": "user", "content": "What is 3 + 4?"}
TALK = [
    {"role": "system", "content": "Be brief."},
    ASK,
    {"role": "assistant", "content": "7."},
    {"role": "user", "content": "And 4 + 3?"},
]
CHATML = """\
{% for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}{{ message.content + '<|im_end|>' }}{% endif %}
{{ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
# Where a reply ends in each: at eos (0), and at <|im_end|> (3) in the middle of a conversation.
ENDS = {"olmo": [0, 3], "tulu": 0, "chatml.jinja": [0, 3], None: [0, 3]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("talking")
    talking(random_experts(3, **TALKING), folder / "hf")
    config = json.loads((folder / "hf" / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ 'an old template' }}"
    (folder / "hf" / "tokenizer_config.json").write_text(json.dumps(config))
    import_hf(folder / "hf", folder / "checkpoint")
    return folder / "checkpoint"


def _rendered_plainly(template: str, tokenizer, messages) -> str:
    """By Jinja as a program sets it up that has never heard of transformers."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        messages=messages, add_generation_prompt=True, **tokenizer.special_tokens_map
    )


@pytest.mark.parametrize("name", ENDS)
def test_transformers_talks_to_an_export_as_we_do(
    name, checkpoint, tmp_path, monkeypatch, said_by_transformers
):
    monkeypatch.chdir(tmp_path)
    Path("chatml.jinja").write_text(CHATML)
    named = [] if name is None else ["--chat-template", name]
    assert main(["export", str(checkpoint), "hf", *named]) == 0
    ours = load_chat_format(checkpoint, name)
    tokenizer = AutoTokenizer.from_pretrained("hf")
    model = AutoModelForCausalLM.from_pretrained("hf", dtype="auto")
    assert "generation %}" not in tokenizer.chat_template
    for messages in ([ASK], TALK):
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        expected = chat.prompt_ids(ours.tokenizer, messages, ours.template)
        assert prompt["input_ids"][0].tolist() == expected
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert _rendered_plainly(tokenizer.chat_template, tokenizer, messages) == text
    assert model.generate(**prompt, max_new_tokens=3).shape[1] == len(expected) + 3
    assert model.generation_config.eos_token_id == ENDS[name]
    assert ours.stop_ids == set(ENDS[name] if isinstance(ENDS[name], list) else [0])
    assert model.generation_config.pad_token_id == ours.pad_id == tokenizer.pad_token_id
    assert not said_by_transformers.records
    # What was exported comes back as it was trained.
    import_hf(Path("hf"), Path("again"))
    assert load_tokenizer(Path("again")).chat_template == ours.template
    assert load_chat_format(Path("again"), None).stop_ids == ours.stop_ids


@pytest.mark.parametrize("name", ["olmo", "tulu"])
def test_generation_ends_where_evaluation_ends(name, checkpoint, tmp_path):
    """Whichever token the model says next, transformers stops at the same ones as `evaluate`."""
    assert main(["export", str(checkpoint), str(tmp_path / "hf"), "--chat-template", name]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    stops = load_chat_format(checkpoint, name).stop_ids
    for token in (0, 2, 3, 50):
        biased = {"sequence_bias": {(token,): 1e6}}
        ids = model.generate(max_new_tokens=3, inputs=_prompt(model), **biased)
        assert ids.shape[1] == (2 if token in stops else 4), token


def _prompt(model):
    return model.dummy_inputs["input_ids"][:1, :1]


def test_a_length_beyond_the_positions_isn_t_exported(tmp_path):
    folder = talking(random_experts(2, **TALKING), tmp_path / "hf")
    (folder / "generation_config.json").write_text('{"max_length": 4096, "temperature": 0.7}')
    import_hf(folder, tmp_path / "checkpoint")
    assert main(["export", str(tmp_path / "checkpoint"), str(tmp_path / "out")]) == 0
    exported = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert exported == {"temperature": 0.7, "eos_token_id": [0, 3], "pad_token_id": 1}


def test_a_tokenizer_without_an_end_is_exported_as_it_is(tmp_path):
    folder = talking(random_experts(2, **TALKING), tmp_path / "hf")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"eos_token": None, "pad_token": None})
    )
    (folder / "special_tokens_map.json").unlink()
    (folder / "generation_config.json").unlink()
    import_hf(folder, tmp_path / "checkpoint")
    assert main(["export", str(tmp_path / "checkpoint"), str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "generation_config.json").exists()


def _recipe(folder: Path, **changes):
    stage = {"steps": 1, "data": [{"toy": "math"}]}
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "mine",
                "runs": str(folder / "runs"),
                "anchor": str(folder),
                "domains": {"math": {"midtrain": stage, "sft": stage}},
                "route": {"training": {"steps": 1}},
                **changes,
            }
        )
    )
    return load_recipe(folder / "recipe.yaml")


def _stage(recipe, name: str):
    return next(stage for stage in stage_graph(recipe) if stage.name == name)


def test_another_template_makes_the_export_stale(tmp_path):
    ids = {
        template: identity(_stage(_recipe(tmp_path, chat_template=template), "hf"))
        for template in (None, "olmo", "tulu")
    }
    assert len(set(ids.values())) == 3
    assert _stage(_recipe(tmp_path), "hf").chat_template is None


@pytest.mark.parametrize(
    "name, template",
    [
        ("math/midtrain", None),
        ("math/sft", "tulu"),
        ("routed", "tulu"),
    ],
)
def test_a_checkpoint_carries_the_format_it_was_trained_in(name, template, checkpoint, tmp_path):
    recipe = _recipe(tmp_path, chat_template="tulu")
    context = context_of(recipe, tmp_path, name)
    context.folder.mkdir(parents=True)
    context.input_folder("start").mkdir(parents=True)
    context.checkpoint("start").symlink_to(checkpoint)
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "hf").symlink_to(trained_tokenizer_files(context))
    expected = load_chat_format(checkpoint, template)
    found = load_chat_format(tmp_path / "trained", None)
    assert (found.template, found.pad_id) == (expected.template, expected.pad_id)
    assert found.stop_ids == expected.stop_ids
    assert (tmp_path / "trained" / "hf" / "token_ids.json").is_file()
