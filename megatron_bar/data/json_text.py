"""JSON as people's files hold it, parsed so that no value of it is a traceback."""

from __future__ import annotations

import json
from typing import Any

from megatron_bar.runtime.errors import BarError


class Digits(str):
    """The digits of an integer that has more of them than Python reads (4,300); no text."""


def _integer(digits: str) -> int | Digits:
    try:
        return int(digits)
    except ValueError:
        return Digits(digits)


_DECODER = json.JSONDecoder(parse_int=_integer)


class NotJson(BarError):
    """A text isn't JSON, from the line called `line` on."""

    def __init__(self, reason: str, line: int = 1) -> None:
        super().__init__(reason)
        self.line = line


def parse_json(text: str) -> Any:
    """The value that `text` is. Raises NotJson."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise NotJson(f"not valid JSON: {error.msg}", error.lineno) from None
    except RecursionError:
        raise NotJson("lists or objects in this JSON are nested too deep to be read") from None
