"""`rlvr`: reinforcement learning with verifiable rewards. Its place in the graph is kept.

The trainer is NeMo-Aligner's, which a later step connects; no recipe key asks for the stage yet.
"""

from __future__ import annotations

from typing import Any

from megatron_bar.runtime.errors import BarError
from megatron_bar.stages.context import Context


def run(context: Context) -> dict[str, Any]:
    raise BarError(f"{context.stage.name}: the rlvr stage is not there yet")
