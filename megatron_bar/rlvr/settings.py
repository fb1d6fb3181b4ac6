"""Checks of the settings of RLVR that have to fit together."""

from __future__ import annotations

from megatron_bar.generation.places import server_gpus
from megatron_bar.recipe.training import Rlvr
from megatron_bar.rlvr.backends import BACKENDS
from megatron_bar.rlvr.objective import ADVANTAGES
from megatron_bar.runtime.errors import BarError
from megatron_bar.runtime.layout import Layout

TRUNCATED = ("keep", "mask", "zero")
_LARGEST_SEQUENCE_CLIP = 0.1  # a wider one never clips: the published ones are below 0.001


def asks_reference(settings: Rlvr, step: int) -> bool:
    """Whether a step, the first being 1, asks what the policy said at the stage's start."""
    every = settings.kl_every
    return bool(settings.kl_coefficient) or (every > 0 and step % every == 0)


def reference_share(settings: Rlvr) -> float:
    """The share of steps that do."""
    return 1.0 if settings.kl_coefficient else 1 / settings.kl_every if settings.kl_every else 0.0


def check_settings(settings: Rlvr, layout: Layout) -> None:
    """Raise BarError for settings that don't fit each other or the layout."""
    for key, allowed in (
        ("advantage", ADVANTAGES),
        ("truncated", TRUNCATED),
        ("backend", (None, *BACKENDS)),
    ):
        if getattr(settings, key) not in allowed:
            raise BarError(
                f"{key} is {getattr(settings, key)!r}; there are {', '.join(filter(None, allowed))}"
            )
    for key in ("prompts_per_step", "rollout_batch_size", "prompt_length", "response_length"):
        if getattr(settings, key) < 1:
            raise BarError(f"{key} is {getattr(settings, key)}; give at least 1")
    if settings.rollout_servers and settings.rollout_folder is None:
        raise BarError("rollout_servers need rollout_folder, the folder that they serve")
    if settings.rollout_servers and settings.rollout_python is not None:
        raise BarError(
            "rollout_servers are servers that others start, rollout_python starts one; "
            "give one of the two"
        )
    if settings.rollout_sleep and not settings.served:
        raise BarError(
            "rollout_sleep is for servers; give rollout_servers or rollout_python, or leave it out"
        )
    if settings.rollout_nodes:
        _check_nodes(settings)
    if settings.rollouts_ahead == 1:
        _check_ahead(settings)
    if settings.steps is None:
        raise BarError("give steps, the number of rollouts")
    if settings.samples_per_prompt < 2:
        raise BarError(
            f"samples_per_prompt is {settings.samples_per_prompt}; samples of "
            "a prompt are compared with each other, so give at least 2"
        )
    if settings.temperature <= 0:
        raise BarError(
            f"temperature is {settings.temperature}; greedy samples are all "
            "the same, so give more than 0"
        )
    if settings.loss_type == "gspo" and settings.clip_high > _LARGEST_SEQUENCE_CLIP:
        raise BarError(
            f"clip_high is {settings.clip_high}, which is for ratios of single tokens; "
            "with loss_type gspo the ratio is that of whole responses and stays near "
            "1: give clips for it, such as clip_low: 3e-4 and clip_high: 4e-4"
        )
    if layout.context > 1:
        raise BarError(
            f"layout.context is {layout.context}; rollouts generate token by token, so "
            "leave it out of this stage's layout"
        )
    responses = settings.rows_per_step
    unit = settings.samples_per_prompt * layout.data
    if settings.global_batch_size % unit or responses % settings.global_batch_size:
        raise BarError(
            f"global_batch_size {settings.global_batch_size} doesn't fit: it must be a multiple of "
            f"samples_per_prompt x data-parallel ranks = {unit} and divide the "
            f"{responses} responses of a step"
        )
    if settings.global_batch_size // layout.data % settings.micro_batch_size:
        raise BarError(
            f"micro_batch_size {settings.micro_batch_size} doesn't divide the "
            f"{settings.global_batch_size // layout.data} responses of a rank and "
            "update"
        )


def _check_nodes(settings: Rlvr) -> None:
    if settings.rollout_python is None:
        raise BarError(
            f"rollout_nodes is {settings.rollout_nodes}, for servers that the stage starts; give "
            "rollout_python, the Python that has vLLM, or leave it out"
        )
    if settings.rollout_sleep:
        raise BarError(
            "rollout_sleep is for servers that share GPUs with training, and with rollout_nodes "
            "they have their own; leave one of the two out"
        )
    server_gpus(settings.rollout_options)  # raises where they say no sizes


def _check_ahead(settings: Rlvr) -> None:
    if not settings.served:
        raise BarError(
            "rollouts_ahead is 1, and the training processes generate themselves, which "
            "they can't while they train; give rollout_servers or rollout_python, or "
            "leave it out"
        )
    if settings.rollout_sleep:
        raise BarError(
            "rollouts_ahead is 1, so that servers answer while the policy learns, and "
            "rollout_sleep has them sleep then; leave one of the two out"
        )
    if settings.truncated_importance_sampling is None:
        raise BarError(
            "rollouts_ahead is 1, so that answers come from weights of a step ago; give "
            "the weights that correct it, such as truncated_importance_sampling: 2"
        )
