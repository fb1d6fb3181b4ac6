"""The OLMo-2 tokenizer and GSM8K through the whole recipe, tensor parallel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from megatron_bar.cli import main
from megatron_bar.data.chat import TEMPLATES
from megatron_bar.stages.context import read_done
from megatron_bar.training.metrics import read_metrics
from tests.models_hf import random_dense

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
STEPS = 200

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data isn't beside the project"),
]


def _base(folder: Path) -> None:
    """A random OLMo-2 with the real vocabulary: 100,352 rows, narrow, of two layers."""
    random_dense(
        vocab_size=100_352,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        max_position_embeddings=512,
        eos_token_id=100_257,
    ).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_file=str(SHARED / "tokenizer" / "allenai_dolma2.json"),
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATES["olmo"],
    ).save_pretrained(folder)


def _conversations(path: Path, count: int) -> None:
    with open(SHARED / "math" / "gsm8k_train.jsonl") as source, open(path, "w") as target:
        for _, line in zip(range(count), source):
            record = json.loads(line)
            target.write(
                json.dumps(
                    {
                        "messages": [
                            {"role": "user", "content": record["question"]},
                            {"role": "assistant", "content": record["answer"]},
                        ]
                    }
                )
                + "\n"
            )


def test_200_steps_on_gsm8k_lower_the_loss(tmp_path):
    _base(tmp_path / "base")
    _conversations(tmp_path / "gsm8k.jsonl", 400)
    small = dict(sequence_length=256, global_batch_size=1, micro_batch_size=1, lr=1e-2)
    recipe = {
        "name": "real",
        "runs": str(tmp_path / "runs"),
        "anchor": str(tmp_path / "base"),
        "layout": {"processes": 2, "tensor": 2},
        "domains": {
            "math": {
                "sft": small | {"steps": STEPS, "data": [{"path": str(tmp_path / "gsm8k.jsonl")}]},
                "tasks": [{"path": str(tmp_path / "gsm8k.jsonl"), "count": 2}],
            }
        },
        "route": {"fraction": 0.05, "training": small | {"steps": 2}},
        "evaluate": {"max_new_tokens": 4},
    }
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["run", str(tmp_path / "real.yaml")]) == 0
    run = tmp_path / "runs" / "real"
    losses = [m["loss"] for m in read_metrics(run / "math" / "sft")]
    print(f"GSM8K loss over {STEPS} steps: {losses[0]:.2f} -> {losses[-1]:.2f}")
    assert sum(losses[-3:]) / 3 < losses[0] - 2
    done = read_done(run / "math" / "sft")
    assert done["anchor_digest"]["before"] == done["anchor_digest"]["after"]
    assert done["conversations"] == {"gsm8k": 400}
    exported = run / "hf" / "model"
    assert main(["verify", str(run / "routed" / "checkpoint"), str(exported)]) == 0
