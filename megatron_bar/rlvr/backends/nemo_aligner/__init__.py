"""NeMo-Aligner 0.7.0 as the trainer of RLVR.

NVIDIA has archived it. Used of the unmodified wheel: the REINFORCE trainer with its loop, rollout
batches and gathering. Not used: its GPT actor, its optimizers, TensorRT-LLM, pytriton,
reward servers. Where the trainer is wrong, `trainer` overrides it; what an import or a CPU stumbles
over is in `accommodations`.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_bar.rlvr.learner import Learner

PRELOAD = f"{__name__}.preload"


def missing() -> str | None:
    if importlib.util.find_spec("nemo_aligner") is not None:
        return None
    return "NeMo-Aligner is missing; install it with: pip install 'megatron-bar[nemo-aligner]'"


def prepare() -> None:
    from megatron_bar.rlvr.backends.nemo_aligner import accommodations

    accommodations.install()


def fit(learner: Learner) -> None:
    from megatron_bar.rlvr.backends.nemo_aligner.drive import drive  # needs `prepare`

    drive(learner)
