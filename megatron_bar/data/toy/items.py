"""Parts that the toy's domains share: the shape of an item, and the rule that holds items out."""

import zlib
from dataclasses import dataclass, field
from typing import Any

HELDOUT_PERCENT = 20
END_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|pad|>")


@dataclass(frozen=True)
class Item:
    """One exchange. `key` names the combination that held-out and training must not share."""

    key: str
    prompt: str
    reply: str
    answer: str
    prompt_extra: dict[str, str] = field(default_factory=dict)
    reply_extra: dict[str, str] = field(default_factory=dict)

    def conversation(self, source: str) -> dict[str, Any]:
        user = {"role": "user", "content": self.prompt} | self.prompt_extra
        assistant = {"role": "assistant", "content": self.reply} | self.reply_extra
        return {"messages": [user, assistant], "source": source, "answer": self.answer}


def is_heldout(key: str) -> bool:
    """A stable rule: the same on every machine and in every Python, unlike hash()."""
    return zlib.crc32(key.encode()) % 100 < HELDOUT_PERCENT


def strip_end(response: str) -> str:
    """The response up to its first end token, without blanks around it."""
    for token in END_TOKENS:
        response = response.split(token, 1)[0]
    return response.strip()


def exact_match(answer: str, response: str) -> float:
    return float(response == answer)
