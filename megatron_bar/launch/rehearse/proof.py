"""Is an exported folder what a user serves?"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_bar.checkpoints.parity import compare_with_transformers
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout

_TOKENS = 8  # to generate
_QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


def prove_export(checkpoint: Path, exported: Path, template: str) -> list[str]:
    """Load, compare, talk to and generate with the folder `exported`; lines on what that showed.

    In one process. `checkpoint` is what it was exported from, `template` what it was trained with.

    Raises BarError for the first thing that a user would stumble over: transformers can't load it
    or computes something else, it has no chat template or another one, or generates nothing.
    """
    with process_groups(Layout()):
        parity = compare_with_transformers(checkpoint, exported)
    if parity.first is not None:
        raise BarError(
            f"{exported} computes something else than {checkpoint}: the first module to "
            f"diverge is {parity.first.module}, by {parity.first.relative:.1e}"
        )
    tokenizer = AutoTokenizer.from_pretrained(exported)
    if tokenizer.chat_template is None:
        raise BarError(
            f"{exported}: the tokenizer has no chat template, so that a server can't "
            "talk to the model as it was trained"
        )
    own, trained = (
        tokenizer.apply_chat_template(
            _QUESTION, chat_template=each, add_generation_prompt=True, tokenize=False
        )
        for each in (None, template)
    )
    if own != trained:
        raise BarError(
            f"{exported}: the tokenizer's chat template asks {own!r}, and the model was "
            f"trained on {trained!r}"
        )
    prompt = tokenizer(own, add_special_tokens=False, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(exported, dtype="auto").eval()
    try:
        with torch.no_grad():
            answer = model.generate(**prompt, max_new_tokens=_TOKENS, do_sample=False)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise BarError(f"{exported}: transformers can't generate: {reason}") from error
    added = answer.shape[1] - prompt["input_ids"].shape[1]
    if not 0 < added <= _TOKENS:
        raise BarError(f"{exported}: transformers generates {added} tokens of {_TOKENS}")
    worst = max(difference.relative for difference in parity.logits)
    return [
        f"transformers loads it in {str(model.dtype).removeprefix('torch.')}, its logits differ by "
        f"{worst:.0e}",
        f"its chat template renders, {added} tokens are generated",
    ]
