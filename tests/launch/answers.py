"""What a run answered, against what transformers generates from its export."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


def same_answers_as_transformers(run: Path, max_new_tokens: int) -> int:
    """How many answers were compared: those of our evaluation, greedy, and the export's."""
    folder = run / "hf" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stops = GenerationConfig.from_pretrained(folder).eos_token_id
    compared = 0
    results = json.loads((run / "evaluate" / "routed" / "results.json").read_text())
    for task in results["tasks"].values():
        for sample in task["samples"]:
            ids = tokenizer(sample["prompt"], add_special_tokens=False, return_tensors="pt")
            out = model.generate(**ids, max_new_tokens=max_new_tokens, do_sample=False)[0]
            new = out[ids["input_ids"].shape[1] :].tolist()
            new = new[: next((i for i, token in enumerate(new) if token in stops), len(new))]
            assert tokenizer.decode(new) == sample["response"]
            compared += 1
    return compared
