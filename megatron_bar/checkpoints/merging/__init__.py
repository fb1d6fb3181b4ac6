"""Rules by which the shared parameters of branches become one set, beside the plain mean.

Every rule is one file, and a function of one tensor of the anchor and of all branches
(`sources.SharedTensor`). It reads them in bands of rows, as often as it needs to, and yields the
merged tensor band by band, so that no rule holds a whole tensor, let alone a model. What a branch
brings is its change: its tensor less the anchor's, the task vector.

All arithmetic is in fp32; the result is stored in the models' own type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, Protocol

import torch

from megatron_bar.checkpoints.merging.dare import Dare
from megatron_bar.checkpoints.merging.fisher import Fisher
from megatron_bar.checkpoints.merging.row_wise import RowWise
from megatron_bar.checkpoints.merging.slerp import Slerp
from megatron_bar.checkpoints.merging.sources import SharedTensor
from megatron_bar.checkpoints.merging.task_arithmetic import TaskArithmetic
from megatron_bar.checkpoints.merging.ties import Ties
from megatron_bar.recipe.names import MERGE_RULES
from megatron_bar.runtime.errors import BarError


class Rule(Protocol):
    """Makes the merged tensor: yields it in the bands, and of the shapes, of `SharedTensor.bands`.

    It reads the models' tensors `PASSES` times.
    """

    PASSES: ClassVar[int]

    def __call__(self, tensor: SharedTensor) -> Iterator[torch.Tensor]: ...


def rule_named(
    name: str, scale: float = 1.0, density: float = 0.2, t: float = 0.5, seed: int = 0
) -> Rule:
    """The rule of a word of `recipe.schema.Merge`, with the settings it takes.

    Raises BarError for another word.
    """
    makers: dict[str, Callable[[], Rule]] = {
        "task_arithmetic": lambda: TaskArithmetic(scale),
        "ties": lambda: Ties(density, scale),
        "dare_linear": lambda: Dare(density, scale, seed, elects=False),
        "dare_ties": lambda: Dare(density, scale, seed, elects=True),
        "fisher": Fisher,
        "row_wise": RowWise,
        "slerp": lambda: Slerp(t),
    }
    assert makers.keys() == MERGE_RULES.keys()
    if name not in makers:
        raise BarError(f"--rule: {name!r} is none of {', '.join(makers)}")
    return makers[name]()
