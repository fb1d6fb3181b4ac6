"""The README.md of an export: what the model is, what it costs to run, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from megatron_bar.checkpoints.manifest import update_manifest
from megatron_bar.checkpoints.names import slots
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.families import family_of
from megatron_bar.runtime.files import write_text

_FILE = "README.md"
_CARD = """\
---
library_name: transformers
tags: [{tags}]
{metadata}# license: to be added by whoever publishes this model
---

# {title}

{description}

| | |
|---|---|
| architecture | {architecture} |
| layers / hidden / ffn | {model.num_layers} / {model.hidden_size} / {model.ffn_hidden_size} |
| attention heads / kv heads | {model.num_heads} / {model.num_kv_heads} |
| vocabulary | {model.vocab_size} |
| positions | {model.max_position_embeddings} |
| parameters | {parameters} |
{more}
## Use

```python
{use}
```
{made}
Written by megatron-bar.
"""

_ROUTING = """\
| experts | {names} |
| active experts per token (k) | **{model.experts_per_token}** of {model.num_experts} |

## Routing rule

Each layer scores a token with one linear row per expert, takes the **softmax over all
{model.num_experts} experts**, keeps the top {model.experts_per_token}, and adds up their FFN
outputs weighted by these probabilities, {rule}.
{trained}

Expert 0 is the anchor: the FFN of the post-trained base model{bits}.

## Size and speed

{runs} The dense model that it grew from has {dense}: this one takes {size:.1f} times its memory,
and about {speed:.1f} times its computation for each token, read or generated (counted, not
measured).
"""

_AS_TRAINED = """\
Run it with `num_experts_per_tok: {k}`, the value it was trained with; a
smaller k gives another, worse model."""
_FEWER = """\
Its router was trained with **{trained}** active experts, and this export runs **{k}**
(`num_experts_per_tok: {k}`): another, cheaper model, whose scores aren't those of the one that was
trained. Measure it before you use it."""

_LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
"""
_CHAT = """\
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_dict=True,
    return_tensors="pt",
)
answer = model.generate(**prompt, max_new_tokens=256)[0, prompt["input_ids"].shape[1]:]
print(tokenizer.decode(answer, skip_special_tokens=True))"""

_MADE = """\

## How it was made

Base: {bases}.

| stage | data | trained on |
|---|---|---|
{steps}

{scores}

Not evaluated yet.

## Licence

Not chosen yet. Whoever publishes this model adds it, within what the licences of the base and of
the data allow.
"""

_SCORES = "## Scores"


@dataclass(frozen=True)
class Step:
    """One stage's training, for the model card."""

    stage: str
    data: Sequence[str]  # names of sources
    amount: str


@dataclass(frozen=True)
class Origin:
    """The origin of a recipe's model: its method, a sentence about it, and what went in."""

    method: str
    words: str
    name: str = ""
    bases: Mapping[str, str] = field(default_factory=dict)  # by role
    hub_bases: Sequence[str] = ()  # OWNER/NAME of those that the hub has
    steps: Sequence[Step] = ()


def write_model_card(
    folder: Path,
    model: ModelConfig,
    origin: Origin | None = None,
    chats: bool = False,
    trained_active: int | None = None,
) -> None:
    """Write `folder`/README.md for `model`, which `chats` if it has a chat template.

    `trained_active` is how many active experts its router has learned with, by default its own.
    Without an `origin` it says what the shape tells.
    """
    family = family_of(model)
    hf_class = family.hf_class(model)
    tags = [hf_class.model_type, *([origin.method] if origin else [])]
    if model.num_experts is None:
        title, more = f"A dense {family.title} model", family.note
        looks = f"A dense model in {family.title}'s architecture."
    else:
        tags.append("mixture-of-experts")
        title = "A mixture of experts"
        looks = f"A mixture of experts made of {family.title} models."
        more = _routing(
            model, trained_active or model.experts_per_token, ", bit for bit" if origin else ""
        )
    (Path(folder) / _FILE).write_text(
        _CARD.format(
            tags=", ".join(tags),
            metadata=_metadata(origin),
            architecture=hf_class.name,
            title=origin.name if origin and origin.name else title,
            more=more,
            model=model,
            description=f"{looks} {origin.words}" if origin else looks,
            parameters=_billions(parameters(model)),
            use=(_LOAD + (_CHAT if chats else "")).rstrip(),
            made=_made(origin) if origin and origin.bases else "",
        ),
        encoding="utf-8",
    )


def add_scores(folder: Path, lines: Sequence[str]) -> None:
    """Put `lines` in place of what the card's section on scores says, and in the manifest's digest.

    A card without that section, of an earlier version or changed by hand, stays as it is.
    """
    path = Path(folder) / _FILE
    before, heading, after = path.read_text(encoding="utf-8").partition(f"\n{_SCORES}\n")
    if not heading:
        return
    _, next_heading, rest = after.partition("\n## ")
    said = "\n".join(lines)
    write_text(path, f"{before}{heading}\n{said}\n{next_heading}{rest}")
    update_manifest(folder, _FILE)


def _routing(model: ModelConfig, trained: int | None, bits: str) -> str:
    names = ", ".join(f"{i} {name}" for i, name in enumerate(model.all_expert_names))
    size, speed = times_the_dense(model)
    rule = "**without renormalisation** (`norm_topk_prob: false`)"
    if model.renormalize:
        rule = "**which are made to sum to 1** (`norm_topk_prob: true`)"
    runs = (
        "**Every expert runs for every token.**"
        if model.all_experts_active
        else f"{model.experts_per_token} of {model.num_experts} experts run for each token."
    )
    return _ROUTING.format(
        model=model,
        names=names,
        rule=rule,
        bits=bits,
        runs=runs,
        size=size,
        speed=speed,
        trained=(_AS_TRAINED if trained == model.experts_per_token else _FEWER).format(
            k=model.experts_per_token, trained=trained
        ),
        dense=_billions(parameters(model.without_experts())),
    )


def times_the_dense(model: ModelConfig) -> tuple[float, float]:
    """The parameters of a mixture, and its operations for a token, over those of a dense model."""
    dense = model.without_experts()
    total, base = parameters(model), parameters(dense)
    # Looked up, not computed with, unless they are the head, too.
    embeddings = 0 if dense.tied_embeddings else dense.vocab_size * dense.hidden_size
    ffn = 3 * dense.num_layers * dense.hidden_size * dense.ffn_hidden_size
    assert model.num_experts is not None and model.experts_per_token is not None
    active = total - (model.num_experts - model.experts_per_token) * ffn
    return total / base, (active - embeddings) / (base - embeddings)


def parameters(model: ModelConfig) -> int:
    """The count of numbers in a model of this shape."""
    return sum(torch.Size(shape).numel() for slot in slots(model) for shape in slot.hf_shapes)


def _billions(count: int) -> str:
    return f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def _metadata(origin: Origin | None) -> str:
    """What the hub links the model by."""
    if origin is None or not origin.hub_bases:
        return ""
    return "".join(["base_model:\n", *(f"- {name}\n" for name in origin.hub_bases)])


def _made(origin: Origin) -> str:
    return _MADE.format(
        scores=_SCORES,
        bases=", ".join(f"{name} ({role})" for role, name in origin.bases.items()),
        steps="\n".join(
            f"| {step.stage} | {', '.join(step.data)} | {step.amount} |" for step in origin.steps
        ),
    )
