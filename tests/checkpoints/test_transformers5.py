"""transformers 5 loads what we export, and we import what it saves.

It can't be installed beside transformers 4, so this runs where MEGATRON_BAR_TRANSFORMERS5_PYTHON
names the Python of an environment that has it: `make test-transformers5` makes one.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.checkpoints.hf import model_config_from_hf
from megatron_bar.checkpoints.tokenizer_files import load_tokenizer
from megatron_bar.data.chat import prompt_ids
from megatron_bar.data.chat_format import load_chat_format
from tests.models_hf import (
    DENSE,
    MIXTURES,
    TALKING,
    random_dense,
    random_experts,
    random_model,
    random_olmo3,
    talking,
)

PYTHON = os.environ.get("MEGATRON_BAR_TRANSFORMERS5_PYTHON")
pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="MEGATRON_BAR_TRANSFORMERS5_PYTHON names no Python with transformers 5"
)

MODELS = {name: partial(random_model, name) for name in DENSE | MIXTURES} | {
    "olmo2-theta": lambda: random_dense(rope_theta=10_000.0),
    "olmo3-theta": lambda: random_olmo3(rope_theta=10_000.0),
    "olmo3-no-yarn": lambda: random_olmo3(rope_scaling=None),
    "flex-7-of-7": lambda: random_experts(7),
    "flex-named": lambda: random_experts(
        3,
        megatron_bar={"expert_names": ["anchor", "math", "code"], "merged_from": ["math", "code"]},
    ),
    "flex-5-of-7": lambda: random_experts(7, num_experts_per_tok=5),
}
TEMPLATES = ("olmo", "tulu")
TOKENS_BS = torch.arange(60).reshape(2, 30) * 5 % 331
# Runs in the other environment, once for all models, where importing takes longest.
SCRIPT = """
import sys, json
from pathlib import Path
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, tokens = Path(sys.argv[1]), torch.tensor(json.loads(sys.argv[2]))
for source in sorted(folder.glob("*/hf")):
    model, info = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True)
    wrong = [key for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]]
    assert not wrong, (source, info)
    with torch.no_grad():
        torch.save(model.eval()(tokens).logits, source.parent / "logits.pt")
    model.save_pretrained(source.parent / "saved")
    if (source / "tokenizer.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.save_pretrained(source.parent / "saved")
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": "3 + 4?"}],
            add_generation_prompt=True, return_dict=True, return_tensors="pt")
        model.generate(**prompt, max_new_tokens=3)
        generation = model.generation_config
        facts = {"prompt": prompt["input_ids"][0].tolist(), "pad": generation.pad_token_id,
                "stops": generation.eos_token_id}
        (source.parent / "facts.json").write_text(json.dumps(facts))
print(transformers.__version__)
"""


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Exports of all models, with the logits that transformers 5 computes of each, and its save."""
    folder = tmp_path_factory.mktemp("exports")
    for name in TEMPLATES:
        talking(random_experts(3, **TALKING), folder / name / "source")
        import_hf(folder / name / "source", folder / name / "checkpoint")
        export_hf(
            folder / name / "checkpoint",
            folder / name / "hf",
            chat=load_chat_format(folder / name / "checkpoint", name),
        )
    for name, make in MODELS.items():
        make().save_pretrained(folder / name / "source")
        import_hf(folder / name / "source", folder / name / "checkpoint")
        export_hf(folder / name / "checkpoint", folder / name / "hf")
    done = subprocess.run(
        [PYTHON, "-c", SCRIPT, str(folder), json.dumps(TOKENS_BS.tolist())],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "[transformers]" in line], done.stderr
    assert int(done.stdout.split(".")[0]) >= 5, f"{PYTHON} has transformers {done.stdout}"
    return folder


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_it_computes_the_same_logits(name, exports):
    expected = AutoModelForCausalLM.from_pretrained(exports / name / "source")(TOKENS_BS).logits
    logits = torch.load(exports / name / "logits.pt")
    difference = ((logits - expected).abs().max() / expected.abs().max()).item()
    print(f"{name}: relative difference of logits {difference:.1e}")
    assert difference < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_what_it_saves_is_imported_bit_for_bit(name, exports, tmp_path):
    import_hf(exports / name / "saved", tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "hf")
    assert model_config_from_hf(tmp_path / "hf") == model_config_from_hf(exports / name / "source")
    ours = load_file(tmp_path / "hf" / "model.safetensors")
    theirs = load_file(exports / name / "source" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", TEMPLATES)
def test_it_talks_to_an_export_as_we_do(name, exports):
    ours = load_chat_format(exports / name / "checkpoint", name)
    facts = json.loads((exports / name / "facts.json").read_text())
    ask = [{"role": "user", "content": "3 + 4?"}]
    assert facts["prompt"] == prompt_ids(ours.tokenizer, ask, ours.template)
    stops = facts["stops"] if isinstance(facts["stops"], list) else [facts["stops"]]
    assert set(stops) == ours.stop_ids and facts["pad"] == ours.pad_id
    saved = load_tokenizer(exports / name / "saved")
    assert saved.all_special_tokens == ours.tokenizer.all_special_tokens
    assert saved.chat_template == ours.template
