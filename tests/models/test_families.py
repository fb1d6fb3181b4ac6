"""Every family in one process: generation, bf16, and the way of a branch to an export.

Logits and gradients in every layout are in tests/distributed/test_parity.py, conversion in
tests/checkpoints/test_round_trip.py.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megatron_bar.checkpoints.branch import branch
from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.checkpoints.merge import merge
from megatron_bar.checkpoints.model_io import load_model
from megatron_bar.checkpoints.verify import verify_tensors
from megatron_bar.generation.engine import Request, Sampling
from megatron_bar.generation.rollouts import MegatronEngine
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.families import family_of
from megatron_bar.models.language_model import build_model
from megatron_bar.models.presets import PRESETS, preset_named
from megatron_bar.runtime.distributed import process_groups
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout
from tests.models_hf import DENSE, MIXTURES, imported, random_model

PROMPTS = [[5, 17, 301], [8, 2, 44, 9, 330, 12, 77, 3, 250, 61, 19], [7]]
NEW_TOKENS = 20
TOKENS_BS = torch.arange(60).reshape(2, 30) * 5 % 331


@torch.no_grad()
def _logits(checkpoint, dtype=torch.float32):
    with process_groups(Layout()):
        model = build_model(ModelConfig.load(checkpoint), Layout(), dtype)
        load_model(model, checkpoint)
        positions_BS = torch.arange(TOKENS_BS.shape[1]).expand_as(TOKENS_BS)
        return model.eval()(TOKENS_BS, positions_BS, None)[..., :331].float()


def _difference(ours_BSV, theirs_BSV) -> float:
    return ((ours_BSV - theirs_BSV).abs().max() / theirs_BSV.abs().max()).item()


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSE | MIXTURES)
def test_greedy_generation_equals_transformers(name, tmp_path):
    theirs = random_model(name)
    checkpoint = imported(theirs, tmp_path)
    expected = [
        theirs.generate(
            torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]
    with process_groups(Layout()):
        model = build_model(ModelConfig.load(checkpoint), Layout(), sequence_parallel=False)
        load_model(model, checkpoint)
        engine = MegatronEngine(model.eval(), batch_size=len(PROMPTS))
        requests = [Request(prompt) for prompt in PROMPTS]
        sampling = Sampling(NEW_TOKENS, frozenset({0}))
        answers = [response.answer for response in engine.generate(requests, sampling)]
        alone = [engine.generate([request], sampling)[0].answer for request in requests]
    assert answers == alone == [a[: a.index(0)] if 0 in a else a for a in expected]
    assert any(len(answer) > 5 for answer in answers)  # past OLMo-3's window


@pytest.mark.parametrize("name", DENSE | MIXTURES)
@torch.no_grad()
def test_bf16_is_as_near_to_fp32_as_transformers_is(name, tmp_path):
    """Rounding differs, so the two can't be equal."""
    theirs = random_model(name).bfloat16()
    checkpoint = imported(theirs, tmp_path)
    rounded_BSV = theirs(TOKENS_BS).logits.float()
    exact_BSV = theirs.float()(TOKENS_BS).logits
    ours, expected = (
        _difference(logits_BSV, exact_BSV)
        for logits_BSV in (_logits(checkpoint, torch.bfloat16), rounded_BSV)
    )
    assert 0 < ours < 1.5 * expected < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSE)
@torch.no_grad()
def test_a_branch_is_merged_and_exported_to_a_class_that_computes_it(name, tmp_path):
    """Experts that are copies of one FFN compute the dense model; others, what transformers does.

    Where no class has the family with experts, it says so, and nothing is written.
    """
    theirs = random_model(name)
    checkpoint = imported(theirs, tmp_path)
    pretrained = imported(
        random_model(name, seed=1, max_position_embeddings=48),  # as Qwen3's base
        tmp_path / "pretrained",
    )
    for expert in ("math", "code"):
        branch(
            checkpoint,
            tmp_path / expert,
            pretrained if expert == "code" else None,
            expert_name=expert,
        )
    assert _difference(_logits(tmp_path / "math"), theirs(TOKENS_BS).logits) < 1e-5
    merge([tmp_path / "math", tmp_path / "code"], tmp_path / "merged", checkpoint)
    family = family_of(ModelConfig.load(checkpoint))
    if family.mixture is None:
        with pytest.raises(BarError, match=f"no class for {family.title} with experts"):
            export_hf(tmp_path / "merged", tmp_path / "export")
        assert not (tmp_path / "export").exists()
        return
    export_hf(tmp_path / "merged", tmp_path / "export")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert type(exported).__name__ == family.mixture.name
    assert _difference(_logits(tmp_path / "merged"), exported(TOKENS_BS).logits) < 1e-5
    verify_tensors(tmp_path / "merged", tmp_path / "export")


def test_a_copy_of_tied_embeddings_is_imported_once(tmp_path):
    """As Qwen3-0.6B is published."""
    random_model("Qwen3, tied").save_pretrained(tmp_path / "hf")
    weights = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(weights)
    head = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, weights, {"format": "pt"})
    import_hf(tmp_path / "hf", tmp_path / "checkpoint")
    assert verify_tensors(tmp_path / "checkpoint", tmp_path / "hf") == len(tensors)
    head[3, 2] += 1
    save_file(tensors | {"lm_head.weight": head}, weights, {"format": "pt"})
    with pytest.raises(BarError, match=r"lm_head\.weight is not model\.embed_tokens\.weight"):
        import_hf(tmp_path / "hf", tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_published_names_have_presets():
    assert preset_named("Qwen3-4B-Base") == PRESETS["qwen3-4b"]
    assert preset_named("Qwen3-4B-Instruct-2507") == PRESETS["qwen3-4b-2507"]
    assert preset_named("OLMo-2-1124-7B-Instruct") == PRESETS["olmo2-7b"]
    assert preset_named("Llama-3.1-8B") is None


def test_a_family_of_a_later_version_is_one_line(tmp_path):
    ModelConfig(128, 48, 80, 4, 6, 2, family="olmo9").save(tmp_path)
    with pytest.raises(BarError, match="family is 'olmo9', which this version doesn't know"):
        family_of(ModelConfig.load(tmp_path))
