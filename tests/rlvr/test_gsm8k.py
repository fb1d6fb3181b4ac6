"""GSM8K and OLMo-2's tokenizer through the whole stage, in every kind of parallelism."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from megatron_bar.data.chat import TEMPLATES
from megatron_bar.launch import processes
from megatron_bar.methods.load import load_recipe, save_recipe
from megatron_bar.methods.run import run_stage
from megatron_bar.stages.context import read_done
from megatron_bar.training.metrics import read_metrics
from tests.layouts import EXPERTS
from tests.models_hf import random_dense

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
STEPS = 2
# A random model solves no problem of GSM8K. What varies is whether its words have enough e's.
ENOUGH_E = {
    "instruction_id_list": ["keywords:letter_frequency"],
    "kwargs": [{"letter": "e", "let_frequency": 10, "let_relation": "at least"}],
}

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data isn't beside the project"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose branch stands, and whose next stage is RLVR."""
    folder = tmp_path_factory.mktemp("gsm8k")
    random_dense(
        vocab_size=100_352,
        num_hidden_layers=2,
        max_position_embeddings=512,
        eos_token_id=100_257,
    ).save_pretrained(folder / "base")
    PreTrainedTokenizerFast(
        tokenizer_file=str(SHARED / "tokenizer" / "allenai_dolma2.json"),
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATES["olmo"],
    ).save_pretrained(folder / "base")
    lines = (SHARED / "math" / "gsm8k_train.jsonl").read_text().split("\n")[:24]
    (folder / "gsm8k.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "messages": [{"role": "user", "content": problem["question"]}],
                    "answer": problem["answer"],
                    "enough": ENOUGH_E,
                }
            )
            + "\n"
            for problem in map(json.loads, lines)
        )
    )
    data = {"path": str(folder / "gsm8k.jsonl")}
    recipe = {
        "name": "gsm8k",
        "runs": str(folder / "runs"),
        "anchor": str(folder / "base"),
        "domains": {
            "math": {
                "rlvr": dict(
                    data=[
                        data | {"verifier": "math", "name": "solved"},
                        data | {"verifier": "instructions", "reference_column": "enough"},
                    ],
                    steps=STEPS,
                    prompts_per_step=6,
                    samples_per_prompt=2,
                    global_batch_size=4,
                    micro_batch_size=2,
                    prompt_length=400,
                    response_length=16,
                    lr=1e-3,
                    kl_every=1,
                    rollout_batch_size=8,
                )
            },
            "other": {"sft": {"steps": 1, "data": [data]}},
        },  # a recipe needs one; it isn't run
        "route": {"training": {"steps": 1}},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    run = folder / "runs" / "gsm8k"
    run.mkdir(parents=True)
    save_recipe(load_recipe(folder / "recipe.yaml"), run / "recipe.yaml")
    for stage in ("anchor", "math/branch"):
        processes.start(run_stage, run, stage).wait()
    return run


def _trained(run: Path, layout: str, folder: Path) -> Path:
    """The stage's folder, in a copy of the run."""
    shutil.copytree(run, folder)
    recipe = load_recipe(folder / "recipe.yaml")
    recipe.domains["math"].rlvr.layout = EXPERTS[layout]
    save_recipe(recipe, folder / "recipe.yaml")
    processes.start(
        run_stage, folder, "math/rlvr", processes=EXPERTS[layout].processes, timeout_seconds=400
    ).wait()
    return folder / "math" / "rlvr"


@pytest.fixture(scope="module")
def alone(run, tmp_path_factory) -> Path:
    found = _trained(run, "tp1", tmp_path_factory.mktemp("alone") / "run")
    metrics = read_metrics(found)
    assert all(line["groups_dropped"] < 1 for line in metrics), "nothing is at stake"
    assert any(line.get("reward/math") == 0 for line in metrics)
    assert len({line["reward"] for line in metrics}) > 1
    assert metrics[-1]["kl"] > 1e-4  # it learns
    return found


@pytest.mark.parametrize("layout", ["tp2", "pp2", "ep2", "dp2"])
def test_rewards_and_losses_are_equal_at_every_layout(run, alone, layout, tmp_path):
    found = _trained(run, layout, tmp_path / "run")
    samples = [(folder / "samples.jsonl").read_text() for folder in (found, alone)]
    assert samples[0] == samples[1]
    for ours, theirs in zip(read_metrics(found), read_metrics(alone), strict=True):
        for name in theirs:
            if name.startswith("reward"):
                assert ours[name] == theirs[name], name
        for name in ("loss", "kl", "entropy", "grad_norm", "response_length"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
    assert read_done(found)["anchor_digest"] == read_done(alone)["anchor_digest"]
