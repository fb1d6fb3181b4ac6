"""References that are more than a text may also be given as JSON, which every file format holds."""

from __future__ import annotations

import json
from typing import Any

from megatron_bar.runtime.errors import BarError


def structured(reference: Any, what: str) -> Any:
    """The reference itself, or what its JSON text means. Raises BarError for any other text."""
    if not isinstance(reference, str):
        return reference
    try:
        return json.loads(reference)
    except (ValueError, RecursionError) as error:  # also of numbers that are too long
        reason = getattr(error, "msg", error)
        raise BarError(
            f"the reference ({what}) is given as text, which must be JSON: {reason}"
        ) from None
