"""The README.md of an export: what the model is and how it routes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_bar.checkpoints.hf import architecture
from megatron_bar.models.config import ModelConfig

_CARD = """\
---
library_name: transformers
tags: [olmo, {tags}]
---

# {title}

{description}

| | |
|---|---|
| architecture | {architecture} |
| layers / hidden / ffn | {model.num_layers} / {model.hidden_size} / {model.ffn_hidden_size} |
| attention heads / kv heads | {model.num_heads} / {model.num_kv_heads} |
| vocabulary | {model.vocab_size} |
{more}
Written by megatron-bar.
"""

_ROUTING = """\
| experts | {names} |
| active experts per token (k) | **{model.experts_per_token}** of {model.num_experts} |

## Routing rule

Each layer scores a token with one linear row per expert, takes the **softmax over all
{model.num_experts} experts**, keeps the top {model.experts_per_token}, and adds up their FFN
outputs weighted by these probabilities, {rule}.
Run it with `num_experts_per_tok: {model.experts_per_token}`, the value it was trained with; a
smaller k gives another, worse model.

Expert 0 is the anchor: the FFN of the post-trained base model{bits}.
"""

_OLMO3 = """\

transformers computes it since 4.57. Releases 5.0 to 5.12 scale RoPE in sliding layers too, which
gives wrong logits ([#45945](https://github.com/huggingface/transformers/pull/45945)); 5.13 is right
again.
"""


@dataclass(frozen=True)
class Origin:
    """How a recipe made a model: its method, and a sentence about it."""

    method: str
    words: str


def write_model_card(folder: Path, model: ModelConfig, origin: Origin | None = None) -> None:
    """Write `folder`/README.md for `model`. Without an `origin` it says what the shape tells."""
    tags = [origin.method] if origin else []
    if model.num_experts is None:
        family = "OLMo-2" if model.olmo3 is None else "OLMo-3"
        tags.insert(0, family.lower().replace("-", ""))
        title, looks = f"A dense {family} model", f"A dense model in {family}'s architecture."
        more = "" if model.olmo3 is None else _OLMO3
    else:
        tags.append("mixture-of-experts")
        title, looks = "A mixture of experts", "A mixture of experts in FlexOlmo's architecture."
        names = ", ".join(f"{i} {name}" for i, name in enumerate(model.all_expert_names))
        rule = "**without renormalisation** (`norm_topk_prob: false`)"
        if model.renormalize:
            rule = "**which are made to sum to 1** (`norm_topk_prob: true`)"
        bits = ", bit for bit" if origin else ""
        more = _ROUTING.format(model=model, names=names, rule=rule, bits=bits)
    (Path(folder) / "README.md").write_text(_CARD.format(
        tags=", ".join(tags), title=title, architecture=architecture(model), more=more,
        description=f"{looks} {origin.words}" if origin else looks, model=model,
    ))
