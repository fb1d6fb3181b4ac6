"""Small random transformers models, of shapes where a transpose or a GQA mix-up can't hide."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from megatron_bar.checkpoints.convert import import_hf
from megatron_bar.data import toy
from megatron_bar.data.batch import Batch
from megatron_bar.data.tokenizer import train_tokenizer

# Not square, fewer kv heads than heads, a vocabulary that tensor parallelism must pad.
SIZES = dict(
    vocab_size=331,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rope_theta=500_000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    # transformers zeroes the gradient of the pad token's embedding row.
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=0,
)
# Of a model that is `talking`: room for the tokens of a small tokenizer, and for a prompt.
TALKING = dict(vocab_size=400, max_position_embeddings=512)


_TWO = {"num_experts": 2, "num_experts_per_tok": 2, "norm_topk_prob": False}
# What small models of each class say beside SIZES, by a name. A class that is here is tested as all
# are: parity in several layouts, generation, conversion and, with experts, branch to export.
DENSE = {
    "OLMo-2": {"model_type": "olmo2"},
    # Layers 0 to 2 see 5 positions, layer 3 sees all, with RoPE stretched from 8 to 64.
    "OLMo-3": {
        "model_type": "olmo3",
        "sliding_window": 5,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8},
    },
    "Qwen3": {"model_type": "qwen3", "head_dim": 12},
    "Qwen3, tied": {"model_type": "qwen3", "head_dim": 12, "tie_word_embeddings": True},
}
MIXTURES = {
    "FlexOlmo": {"model_type": "flex_olmo", **_TWO},
    "Qwen3-MoE": {"model_type": "qwen3_moe", "head_dim": 12, "moe_intermediate_size": 80, **_TWO},
}


def random_model(name: str, seed: int = 0, **sizes) -> PreTrainedModel:
    """A model of a class of DENSE or MIXTURES, with random weights."""
    config = AutoConfig.for_model(**SIZES | (DENSE | MIXTURES)[name] | sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    for parameter_name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * noise if "norm" in parameter_name else 0.1 * noise
    return model.eval()


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its weights in `dtype`, and RoPE's frequencies in fp32, as a loaded one has.

    `model.bfloat16()` would round these too, and every angle with them.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def random_dense(seed: int = 0, **sizes) -> PreTrainedModel:
    return random_model("OLMo-2", seed, **sizes)


def random_olmo3(seed: int = 0, **sizes) -> PreTrainedModel:
    return random_model("OLMo-3", seed, **sizes)


def random_experts(num_experts: int = 2, seed: int = 0, **sizes) -> PreTrainedModel:
    active = {"num_experts_per_tok": num_experts}
    return random_model("FlexOlmo", seed, num_experts=num_experts, **active | sizes)


def packed_batch(vocab_size: int, rows: int = 4, length: int = 24, seed: int = 1) -> Batch:
    """Rows of two documents each, of unequal length, with some tokens unsupervised."""
    generator = torch.Generator().manual_seed(seed)
    tokens_BS = torch.randint(vocab_size, (rows, length + 1), generator=generator)
    splits_B1 = torch.randint(4, length - 4, (rows, 1), generator=generator)
    place_S = torch.arange(length)
    document_BS = (place_S >= splits_B1).long()
    positions_BS = place_S - document_BS * splits_B1
    keep = torch.rand(rows, length, generator=generator) < 0.7
    last_of_document = torch.nn.functional.pad(document_BS.diff(dim=1), (0, 1)) > 0
    return Batch(
        tokens_BS=tokens_BS[:, :-1],
        labels_BS=tokens_BS[:, 1:],
        loss_mask_BS=(keep & ~last_of_document).float(),
        positions_BS=positions_BS,
        sources_BS=torch.where(last_of_document, -1, 0),
        documents_BS=document_BS + 1,
    )


def reference(
    model: PreTrainedModel, batch: Batch
) -> tuple[torch.Tensor, float, dict[str, torch.Tensor]]:
    """transformers' logits, mean loss over the supervised tokens, and gradients by name."""
    logits_BSV = model(
        batch.tokens_BS, attention_mask=_masks(model, batch), position_ids=batch.positions_BS
    ).logits
    losses = torch.nn.functional.cross_entropy(
        logits_BSV.flatten(0, 1).float(), batch.labels_BS.flatten(), reduction="none"
    )
    mask = batch.loss_mask_BS.flatten()
    loss = (losses * mask).sum() / mask.sum()
    model.zero_grad()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return logits_BSV.detach(), loss.item(), gradients


def _masks(model: PreTrainedModel, batch: Batch) -> torch.Tensor | dict[str, torch.Tensor]:
    """The batch's mask as transformers adds it to scores; where layers slide, one a type."""
    minus_inf = torch.finfo(torch.float32).min
    hidden_B1SS = batch.attention_mask_B1SS
    full_B1SS = hidden_B1SS.float() * minus_inf
    window = getattr(model.config, "sliding_window", None)
    if window is None:
        return full_B1SS
    place_S = torch.arange(hidden_B1SS.shape[-1], device=hidden_B1SS.device)
    too_far_SS = place_S[:, None] - place_S >= window
    return {
        "full_attention": full_B1SS,
        "sliding_attention": (hidden_B1SS | too_far_SS).float() * minus_inf,
    }


def imported(model: PreTrainedModel, folder: Path) -> Path:
    """`folder`/checkpoint, an import of the model, which is saved as `folder`/hf."""
    model.save_pretrained(folder / "hf")
    import_hf(folder / "hf", folder / "checkpoint")
    return folder / "checkpoint"


def talking(model: PreTrainedModel, folder: Path) -> Path:
    """The model, saved in `folder` with a small tokenizer and its chat template."""
    model.save_pretrained(folder)
    texts = toy.texts("general", "train", 20, 0)
    train_tokenizer(texts, TALKING["vocab_size"], folder, toy.CHAT_TEMPLATE)
    return folder
