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
    except json.JSONDecodeError as error:
        raise BarError(f"a {what} reference given as text must be JSON: {error.msg}") from None
