"""The main job on what users have: a bf16 OLMo-2 with real data through every stage of a recipe.

Everything goes through the public commands, in one process and tensor with expert parallel; the
latter is killed in its first stage that trains, and goes on.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_bar.checkpoints.number_types import stored_types
from megatron_bar.cli import main
from megatron_bar.models.config import ModelConfig
from megatron_bar.stages.context import read_done
from megatron_bar.training.groups import group_digests
from megatron_bar.training.metrics import read_metrics
from tests.launch.real_model import recipe, write_material
from tests.launch.sample_data import SHARED

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data isn't beside the project"),
]
ROOT = Path(__file__).parents[2]
TRAINED = ("math/midtrain", "math/sft", "math/rlvr", "code/sft", "routed")
LAYOUTS = {
    "tp1": {"processes": 1},
    "tp2ep2": {"processes": 2, "tensor": 2, "expert": 2, "expert_tensor": 1},
}


def killed_in(stage: Path, file: Path) -> None:
    """Run the recipe at `file` until a state of `stage` is saved, then kill all of it."""
    command = subprocess.Popen(
        [sys.executable, "-m", "megatron_bar", "run", str(file)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    while not list(stage.glob("resume/[0-9]*")):
        assert command.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    command.send_signal(signal.SIGKILL)
    command.wait()
    assert not (stage / "stage.json").exists()


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    write_material(folder)
    return folder


@pytest.fixture(scope="module", params=LAYOUTS)
def run(request, material, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    file = folder / "real.yaml"
    layout = LAYOUTS[request.param]
    file.write_text(
        yaml.safe_dump(recipe(material, layout, runs=str(folder / "runs")), sort_keys=False)
    )
    made = folder / "runs" / "real"
    is_killed = request.param == "tp2ep2"
    if is_killed:
        killed_in(made / "math" / "midtrain", file)
    assert main(["run", str(file)]) == 0
    goes_on = "goes on after step" in (made / "logs" / "math-midtrain.txt").read_text()
    assert goes_on == is_killed
    return made


def test_every_stage_keeps_what_it_froze_and_the_types_of_the_anchor(run):
    digests = set()
    for name in TRAINED:
        done = read_done(run / name)
        assert done["summary"].endswith("frozen parameters bit-identical"), name
        assert done["proof_seconds"] < 60
        digests |= set(done["anchor_digest"].values())
        assert all(torch.isfinite(torch.tensor(m["loss"])) for m in read_metrics(run / name))
    assert len(digests | {read_done(run / "merged")["anchor_digest"]}) == 1
    for name in (*TRAINED, "math/branch", "merged"):
        assert set(stored_types(run / name / "checkpoint").values()) == {torch.bfloat16}, name
    before, after = (group_digests(run / name / "checkpoint") for name in ("math/sft", "math/rlvr"))
    assert {group for group in before if before[group] == after[group]} == {"expert.0", "router.0"}


def test_the_export_is_what_a_user_serves(run):
    folder = run / "hf" / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16" and config["num_experts"] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(folder)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    answers = [
        json.loads(line)
        for line in (run / "evaluate" / "routed" / "answers.jsonl").read_text().splitlines()
    ]
    asked = next(answer["prompt"] for answer in answers if answer["task"] == "math")
    question = json.loads((SHARED / "math" / "gsm8k_train.jsonl").read_text().split("\n")[0])
    chat = [{"role": "user", "content": question["question"]}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system") and text.endswith("<|im_start|>assistant\n")
    assert text.partition("<|im_start|>user")[0] == asked.partition("<|im_start|>user")[0]
    ids = tokenizer.apply_chat_template(
        chat, return_tensors="pt", add_generation_prompt=True, return_dict=True
    )
    made = model.generate(**ids, max_new_tokens=6, do_sample=False)
    assert made.shape[1] > ids["input_ids"].shape[1]
    ends = {tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")}
    assert set(model.generation_config.eos_token_id) == ends
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_transformers_computes_the_same(run, capsys):
    checkpoint, exported = run / "routed" / "checkpoint", run / "hf" / "model"
    for words in (
        [checkpoint, exported],
        [checkpoint, exported, "--tensors"],
        [exported],
        [run / "math" / "branch" / "checkpoint"],
        [checkpoint],
    ):
        assert main(["verify", *map(str, words)]) == 0
    shown = capsys.readouterr().out
    assert "equal within 1e-05" in shown and "tensors are equal" in shown


@pytest.mark.parametrize("run", ["tp2ep2"], indirect=True)
def test_a_second_run_does_nothing_and_an_upgrade_replaces_one_expert(
    run, material, tmp_path, capsys
):
    changed = tmp_path / "changed"
    shutil.copytree(run, changed / "real")
    assert main(["run", str(run / "recipe.yaml")]) == 0
    assert "nothing to do" in capsys.readouterr().out
    other = recipe(material, {"processes": 1})
    del other["domains"]["math"]
    other["domains"]["code"]["sft"]["lr"] = 2e-3
    (tmp_path / "code.yaml").write_text(yaml.safe_dump(other))
    assert (
        main(["upgrade", str(changed / "real"), "--replace", f"code={tmp_path / 'code.yaml'}"]) == 0
    )
    before, after = (
        group_digests(root / "routed" / "checkpoint") for root in (run, changed / "real")
    )
    experts = ModelConfig.load(changed / "real" / "routed" / "checkpoint").all_expert_names
    assert experts == ("anchor", "math", "code")
    same = {group for group in before if before[group] == after[group]}
    assert {"expert.0", "expert.1"} <= same and "expert.2" not in same
    assert (
        main(
            [
                "verify",
                str(changed / "real" / "routed" / "checkpoint"),
                str(changed / "real" / "hf" / "model"),
            ]
        )
        == 0
    )
