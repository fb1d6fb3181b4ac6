"""Small models made the way OLMo-2 is published, and a recipe for them on real data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from tests.launch.sample_data import write_lines, write_sample_data, write_tokenizer
from tests.models_hf import random_dense

VOCABULARY, END, PAD = 100_352, 100_257, 100_277
# OLMo-2 Instruct's own format, which doesn't say what carries loss.
OWN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}\n<|assistant|>\n{% endif %}"
)
# A random model solves no problem, so what is rewarded beside is that its words have some e's.
_ENOUGH_E = {
    "instruction_id_list": ["keywords:letter_frequency"],
    "kwargs": [{"letter": "e", "let_frequency": 10, "let_relation": "at least"}],
}
_STEP = dict(sequence_length=256, global_batch_size=2, micro_batch_size=1, lr=1e-3, log_every=1)


def write_model(folder: Path, dtype: torch.dtype, seed: int) -> None:
    """100,352 rows, fewer kv heads than heads, weights in shards with an index, and a tokenizer."""
    model = random_dense(
        seed,
        vocab_size=VOCABULARY,
        num_hidden_layers=2,
        max_position_embeddings=512,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    model.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=PAD)
    model.to(dtype).save_pretrained(folder, max_shard_size="4MB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    write_tokenizer(folder, OWN_TEMPLATE)


def write_material(folder: Path) -> None:
    """The post-trained model in bf16 and the pretrained one in fp32, as both are published, and
    GSM8K, MBPP and self-instruct."""
    write_model(folder / "anchor", torch.bfloat16, 0)
    write_model(folder / "pretrained", torch.float32, 1)
    write_sample_data(folder / "data", 24)
    prompts = folder / "data" / "math_prompts.jsonl"
    write_lines(
        prompts,
        [json.loads(line) | {"enough": _ENOUGH_E} for line in prompts.read_text().splitlines()],
    )


def _path(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    return {"path": str(folder / "data" / f"{name}.jsonl"), "name": name, **more}


def recipe(folder: Path, layout: dict[str, int], **changes: Any) -> dict[str, Any]:
    """Every stage, two steps each but mid-training, which is long enough to be killed in."""
    general = _path(folder, "general_sft")
    return {
        "name": "real",
        "runs": str(folder / "runs"),
        "layout": layout,
        "chat_template": "olmo",
        "anchor": str(folder / "anchor"),
        "pretrained": str(folder / "pretrained"),
        "domains": {
            "math": {
                "midtrain": _STEP
                | {"data": [_path(folder, "math_midtrain")], "steps": 8, "save_every": 2},
                "sft": _STEP | {"data": [_path(folder, "math_sft"), general], "steps": 2},
                "rlvr": {
                    "data": [
                        _path(folder, "math_prompts", verifier="math"),
                        _path(
                            folder,
                            "math_prompts",
                            verifier="instructions",
                            reference_column="enough",
                        )
                        | {"name": "enough_e"},
                    ],
                    "steps": 2,
                    "prompts_per_step": 4,
                    "samples_per_prompt": 4,
                    "global_batch_size": 8,
                    "micro_batch_size": 4,
                    "prompt_length": 400,
                    "response_length": 16,
                    "lr": 1e-3,
                    "rollout_batch_size": 8,
                    "save_every": 1,
                },
                "tasks": [_path(folder, "math_prompts", verifier="math", count=2)],
            },
            "code": {
                "sft": _STEP | {"data": [_path(folder, "code_sft"), general], "steps": 2},
                "tasks": [_path(folder, "code_sft", verifier="exact", count=2)],
            },
        },
        # Three experts, which two ranks can't share.
        "route": {
            "fraction": 0.5,
            "training": _STEP
            | {
                "steps": 2,
                "layout": {
                    key: size for key, size in layout.items() if not key.startswith("expert")
                },
            },
        },
        "evaluate": {"general": [general | {"count": 2, "verifier": "exact"}], "max_new_tokens": 8},
        **changes,
    }
