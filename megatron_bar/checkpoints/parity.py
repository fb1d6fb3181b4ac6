"""Does a checkpoint compute what transformers computes from a Hugging Face folder?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from megatron_bar.checkpoints.model_io import load_model, stacked_gradients
from megatron_bar.checkpoints.names import slots
from megatron_bar.checkpoints.tokenizer_files import load_tokenizer
from megatron_bar.checkpoints.verify import TEXT_TOKENS, fits_past_window, past_window
from megatron_bar.models.config import ModelConfig
from megatron_bar.models.language_model import LanguageModel, build_model
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout

TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
# A parameter's gradient can vanish, as a router's where all experts are copies of the anchor: it is
# compared relative to its own norm, but to no less than this share of the largest gradient's.
SMALLEST_GRADIENT = 1e-3
REAL_TEXT = (
    "In 1898 the Curies found two new elements, 2 grams of which they needed three years to make. "
    "def area(r): return 3.14159 * r ** 2  # in m^2, naïvely\n"
)


@dataclass(frozen=True)
class Difference:
    """The largest difference of one module's output, relative to the largest output."""

    text: str  # for example "real text"
    module: str
    relative: float


@dataclass(frozen=True)
class Parity:
    """The result of a comparison: the logits, the worst gradient, and the first that diverges.

    `untested` is what there was no memory to prove.
    """

    logits: list[Difference]
    gradient: Difference | None
    first: Difference | None
    untested: str | None


def compare_with_transformers(
    checkpoint: Path,
    hf_folder: Path,
    tolerance: float = TOLERANCE,
    gradients: bool = False,
    seed: int = 0,
) -> Parity:
    """Compare logits on random tokens and on real text, both models in fp32 on one device.

    Where the model has a sliding window that these don't fill, also on random tokens that are
    longer, if the memory is there.

    Called inside `process_groups(Layout())`. `first` is the first module, in the order of
    computation, whose output differs by more than `tolerance`, and then the first parameter whose
    gradient differs by more than GRADIENT_TOLERANCE; None where all agree.

    Raises BarError if either can't be loaded.
    """
    config = ModelConfig.load(checkpoint)
    ours = build_model(config, Layout())
    load_model(ours, checkpoint)
    ours.eval()
    try:
        theirs = (
            AutoModelForCausalLM.from_pretrained(
                hf_folder, dtype=torch.float32, attn_implementation="eager"
            )
            .to(_device())  # type: ignore[arg-type]  # its wrapper's type takes no self
            .eval()
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BarError(
            f"{hf_folder} can't be loaded by transformers: {str(error).splitlines()[0]}"
        ) from error
    logits: list[Difference] = []
    untested = None
    texts = list(_inputs(config, hf_folder, seed))
    if config.window is not None and config.window.size >= TEXT_TOKENS:
        if fits_past_window(config):
            texts.append(_past_window(config, seed))
        else:
            untested = f"the sliding window of {config.window.size} tokens"
    texts = [(text, tokens_BS.to(_device())) for text, tokens_BS in texts]
    for text, tokens_BS in texts:
        differences = list(_compare(ours, theirs, tokens_BS, text))
        logits.append(differences[-1])
        first = next((d for d in differences if not d.relative <= tolerance), None)
        if first is not None:
            return Parity(logits, None, first, untested)
    if not gradients:
        return Parity(logits, None, None, untested)
    text, tokens_BS = texts[0]
    found = list(_compare_gradients(ours, theirs, config, tokens_BS, text))
    first = next((d for d in found if not d.relative <= GRADIENT_TOLERANCE), None)
    return Parity(logits, max(found, key=lambda d: d.relative), first, untested)


def _device() -> torch.device:
    """Where both models compute."""
    return torch.device(torch.cuda.current_device())


def _positions(tokens_BS: torch.Tensor) -> torch.Tensor:
    return torch.arange(tokens_BS.shape[1], device=tokens_BS.device).expand_as(tokens_BS)


def _inputs(config: ModelConfig, folder: Path, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    length = min(TEXT_TOKENS, config.max_position_embeddings)
    generator = torch.Generator().manual_seed(seed)
    yield "random tokens", torch.randint(config.vocab_size, (2, length), generator=generator)
    if (Path(folder) / "tokenizer.json").is_file():
        ids = load_tokenizer(folder)(REAL_TEXT)["input_ids"]
        yield "real text", torch.tensor([ids[:length]])


def _past_window(config: ModelConfig, seed: int) -> tuple[str, torch.Tensor]:
    assert config.window is not None
    generator = torch.Generator().manual_seed(seed)
    tokens_BS = torch.randint(config.vocab_size, (1, past_window(config)), generator=generator)
    return f"random tokens past the window of {config.window.size}", tokens_BS


@torch.no_grad()
def _compare(
    ours: LanguageModel, theirs: PreTrainedModel, tokens_BS: torch.Tensor, text: str
) -> Iterator[Difference]:
    with _outputs(_our_modules(ours)) as our_outputs, _outputs(_their_modules(theirs)) as outputs:
        positions_BS = _positions(tokens_BS)
        our_logits_BSV = ours(tokens_BS, positions_BS, None)[..., : ours.unpadded_vocab_size]
        logits_BSV = theirs(tokens_BS).logits
    for module, output_BSH in outputs.items():
        our_BSH = our_outputs[module].transpose(0, 1).reshape(output_BSH.shape)
        yield Difference(text, module, _relative(our_BSH, output_BSH))
    yield Difference(text, "lm_head", _relative(our_logits_BSV, logits_BSV))


def _compare_gradients(
    ours: LanguageModel,
    theirs: PreTrainedModel,
    config: ModelConfig,
    tokens_BS: torch.Tensor,
    text: str,
) -> Iterator[Difference]:
    """Gradients of the mean loss on the next token: the norms of differences, by parameter."""
    inputs_BS, labels_BS = tokens_BS[:, :-1], tokens_BS[:, 1:]
    positions_BS = _positions(inputs_BS)
    ours(inputs_BS, positions_BS, None, labels=labels_BS.contiguous()).mean().backward()
    logits_BSV = theirs(inputs_BS).logits
    torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten()).backward()
    # On the CPU, as ours are.
    expected = {
        name: parameter.grad.cpu()
        for name, parameter in theirs.named_parameters()
        if parameter.grad is not None
    }
    smallest = SMALLEST_GRADIENT * max(gradient.norm() for gradient in expected.values())
    padding = theirs.config.pad_token_id
    our_gradients = stacked_gradients(ours)
    for slot in slots(config):
        stacked = our_gradients[slot.key][slot.index]
        for name, gradient in zip(slot.hf_names, slot.to_hf(stacked)):
            expected_gradient = expected[name]
            if name == "model.embed_tokens.weight" and padding is not None:
                # transformers gives the pad token's row no gradient.
                gradient[padding] = expected_gradient[padding]
            norm = max(expected_gradient.norm(), smallest)
            relative = ((gradient - expected_gradient).norm() / norm).item()
            yield Difference(text, f"the gradient of {name}", relative)


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def _our_modules(model: LanguageModel) -> dict[str, torch.nn.Module]:
    modules = {"model.embed_tokens": model.embedding}
    for i, layer in enumerate(model.decoder.layers):
        modules[f"model.layers.{i}.self_attn"] = layer.self_attention
        modules[f"model.layers.{i}.mlp"] = layer.mlp
        modules[f"model.layers.{i}"] = layer
    return modules | {"model.norm": model.decoder.final_layernorm}


def _their_modules(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    names = ["model.embed_tokens"]
    for i in range(len(model.model.layers)):
        names += [f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp", f"model.layers.{i}"]
    return {name: model.get_submodule(name) for name in [*names, "model.norm"]}


@contextmanager
def _outputs(modules: dict[str, torch.nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """What each module puts out (the first part of it) while the block runs, in the given order."""
    outputs = {name: torch.empty(0) for name in modules}  # for their order

    def keep(name: str):
        def hook(module, args, output):
            output = output[0] if isinstance(output, tuple) else output
            outputs[name] = output.clone()  # Megatron may add the residual to it in place

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
