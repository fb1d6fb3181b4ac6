"""What settings of a recipe don't go together, all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from megatron_bar.recipe.graph import TAKEN_NAMES, TAKEN_STARTS, route_training
from megatron_bar.recipe.methods import check_method, stage_graph
from megatron_bar.recipe.schema import Domain, Evaluate, Recipe, Training
from megatron_bar.recipe.units import token_count
from megatron_bar.runtime.errors import BarError, raise_all

_DTYPES = ("float32", "bfloat16")
_LENGTHS = ("steps", "epochs", "tokens")
_KINDS = ("midtrain", "sft", "rlvr")


def recipe_faults(recipe: Recipe, of_run: str | None = None) -> list[str]:
    """A line for each thing that is wrong; the graph's only where its parts are sound.

    `of_run` is the name of the run's folder where the recipe is what a run wrote there. Only such a
    one may be called NAME/SYSTEM.
    """
    faults = [*_name_faults(recipe, of_run), *_start_faults(recipe), *_told(recipe.layout.check),
              *_domain_faults(recipe), *_evaluate_faults(recipe.evaluate)]
    return faults or list(_graph_faults(recipe))


def check_evaluate(evaluate: Evaluate) -> None:
    """Raise BarError for settings that don't go together."""
    raise_all(list(_evaluate_faults(evaluate)))


def is_plain(name: str) -> bool:
    """It can be the name of a folder, and one word of a command line."""
    return name[:1].isalnum() and name.replace("_", "").replace("-", "").isalnum()


def _is_folder(name: str) -> bool:
    """It is one folder's name, which may have dots too, as in olmo2-7b-v1.10."""
    return is_plain(name.replace(".", "-"))


def _told(check: Callable[..., None], *given: Any, where: str = "") -> Iterator[str]:
    """What `check` raises."""
    try:
        check(*given)
    except BarError as error:
        yield from (f"{where}{line}" for line in str(error).splitlines())


def _name_faults(recipe: Recipe, of_run: str | None) -> Iterator[str]:
    *systems, last = recipe.name.split("/")
    own = len(systems) == 1 and last == of_run
    if not all(map(_is_folder, [*systems, last])) or (systems and not own):
        yield (f"name {recipe.name!r} is to be one folder's name, of letters, digits, '.', '_' and "
               "'-'; runs says where it lies")


def _start_faults(recipe: Recipe) -> Iterator[str]:
    if (recipe.anchor is None) == (recipe.pretrain is None):
        yield "give either anchor (a Hugging Face folder) or pretrain"
    if recipe.pretrain is None:
        return
    training = recipe.pretrain.training
    yield from _training_faults(training, "pretrain.training")
    if training.steps is None:
        yield "pretrain.training: give steps, not epochs or tokens"
    if any(source.weight for source in (*training.data, *recipe.pretrain.chat)):
        yield "pretrain mixes its sources by count, not by weight"
    if training.validation:
        yield "pretrain.training: pretrain has no validation, leave it out"


def _domain_faults(recipe: Recipe) -> Iterator[str]:
    if not recipe.domains:
        yield "domains is empty; name at least one"
    for name, domain in recipe.domains.items():
        if not is_plain(name) or name in TAKEN_NAMES or name.startswith(TAKEN_STARTS):
            yield f"a domain can't be called {name!r}, use another name"
        yield from _stage_faults(domain, f"domains.{name}")


def _stage_faults(domain: Domain, where: str) -> Iterator[str]:
    given = [kind for kind in _KINDS if getattr(domain, kind) is not None]
    if domain.checkpoint is not None and given:
        yield (f"{where} has a checkpoint, so leave out {given[0]}; what route samples stands "
               "under routing")
    if domain.checkpoint is None and not given:
        yield f"{where} has neither midtrain nor sft nor rlvr"
    for kind in given:
        yield from _training_faults(getattr(domain, kind), f"{where}.{kind}")


def _graph_faults(recipe: Recipe) -> Iterator[str]:
    faults = list(_told(check_method, recipe))
    yield from faults
    if faults:
        return
    routes = any(stage.kind == "route" for stage in stage_graph(recipe))
    if routes:
        yield from _route_faults(recipe)
    for name in recipe.evaluate.opt_out:
        if not routes:
            yield (f"evaluate.opt_out is for methods that route, and the method is {recipe.method}")
        if name != "anchor" and name not in recipe.domains:
            yield (f"evaluate.opt_out names {name!r}, which is no expert; there are anchor, "
                   f"{', '.join(recipe.domains)}")


def _evaluate_faults(evaluate: Evaluate) -> Iterator[str]:
    if evaluate.dtype not in _DTYPES:
        yield f"evaluate.dtype {evaluate.dtype!r} is not {' or '.join(_DTYPES)}"
    for key in ("max_new_tokens", "batch_size", "samples"):
        if getattr(evaluate, key) < 1:
            yield f"evaluate.{key} {getattr(evaluate, key)} is not at least 1"
    if evaluate.temperature < 0:
        yield f"evaluate.temperature {evaluate.temperature} is below 0"
    if evaluate.samples > 1 and evaluate.temperature == 0:
        yield (f"evaluate.samples {evaluate.samples} at temperature 0 would be "
               f"{evaluate.samples} times the same answer; set evaluate.temperature")
    if evaluate.layout is not None:
        yield from _told(evaluate.layout.check, where="evaluate.")


def _route_faults(recipe: Recipe) -> Iterator[str]:
    route, experts = recipe.route, len(recipe.domains) + 1
    if route.training.data:
        yield "route.training: data is drawn from the domains' SFT data; leave it out"
    yield from _training_faults(route_training(recipe), "route.training", needs_data=False)
    if route.start not in ("stacked", "random", "centroids"):
        yield f"route.start {route.start!r} is not stacked, random or centroids"
    active = experts if route.active is None else route.active
    if not 1 <= active <= experts:
        yield f"route.active {active} is not from 1 to {experts}, the experts there are"
    if route.renormalize and active == 1:
        yield ("route: with active 1 renormalize gives every token's expert weight 1, so that the "
               "router has nothing to learn from; leave it out")
    if not 0 <= route.load_balancing < float("inf"):
        yield f"route.load_balancing {route.load_balancing} is not 0 or more"
    if route.load_balancing and active == experts:
        yield (f"route.load_balancing does nothing while every token goes to all {experts} "
               "experts; leave it out, or set active to fewer")


def _training_faults(training: Training, where: str, needs_data: bool = True) -> Iterator[str]:
    if needs_data and not training.data:
        yield f"{where}: data is empty"
    if any(s.weight is not None or s.repeat != 1 for s in training.validation):
        yield f"{where}: validation reads each source once; leave weight and repeat out"
    if sum(getattr(training, key) is not None for key in _LENGTHS) != 1:
        yield f"{where}: give one of steps, epochs and tokens"
    if training.tokens is not None:
        yield from _told(token_count, training.tokens, where=f"{where}: ")
    for key, known in _CHOICES.items():
        if getattr(training, key) not in known:
            yield f"{where}: {key} {getattr(training, key)!r} is not {_or(known)}"
    if not 0 <= training.warmup < 1:
        yield (f"{where}: warmup {training.warmup} is not a share in [0, 1); give a number of "
               "steps as warmup_steps")
    for key in _AT_LEAST_ONE:
        if getattr(training, key) < 1:
            yield f"{where}: {key} {getattr(training, key)} is not at least 1"
    for key in ("save_every_minutes", "stop_after_minutes", "peak_tflops"):
        if getattr(training, key) is not None and getattr(training, key) <= 0:
            yield f"{where}: {key} {getattr(training, key)} is not above 0"
    if training.spike is not None and training.spike <= 1:
        yield f"{where}: spike {training.spike} is not above 1; it is a factor"
    if training.layout is not None:
        yield from _told(training.layout.check, where=f"{where}.")


_CHOICES = {
    "overlong": ("truncate", "drop"),
    "schedule": ("linear", "cosine", "constant"),
    "dtype": _DTYPES,
    "recompute": ("none", "moe", "full"),
    "on_bad_step": ("stop", "skip"),
}
_AT_LEAST_ONE = ("sequence_length", "batch_size", "micro_batch_size", "log_every", "save_every",
                 "keep", "validate_every", "max_skips")


def _or(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
