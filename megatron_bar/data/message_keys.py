"""The keys that messages come with, and what becomes of each: one table for all forms of data."""

from __future__ import annotations

import re

# What the model reads or says. The words of the first are those of a turn; the other two are text.
CONTENT, FUNCTIONS, FUNCTION_CALLS = "content", "functions", "function_calls"
PARTS = (CONTENT, FUNCTIONS, FUNCTION_CALLS)
# Names of what a model thinks before it speaks; one that the chat template knows is used.
REASONING = ("reasoning_content", "reasoning", "thinking")
# Whether a reply carries loss: 0 or false says no. In the project's own messages it is LOSS.
LOSS = "loss"
LOSS_KEYS = (LOSS, "weight", "train", "loss_mask")
# Functions that a reply calls, as other software writes them: they become FUNCTION_CALLS.
CALL_KEYS = ("tool_calls", "function_call")

# A key with one of these words would change what is learned, and nobody here knows how.
_CHANGES_LEARNING = frozenset(
    {
        "weight",
        "weights",
        "mask",
        "masked",
        "loss",
        "train",
        "trained",
        "training",
        "trainable",
        "learn",
        "supervise",
        "supervised",
        "prefix",
        "refusal",
        "image",
        "images",
        "audio",
        "video",
        "videos",
        "file",
        "files",
        "attachment",
        "attachments",
        "media",
        "tool",
        "tools",
    }
)
_WORD = re.compile(r"[A-Z]?[a-z]+")
# They tell where a message comes from, not what it says.
_HARMLESS = frozenset(
    {
        "role",
        "id",
        "message_id",
        "uuid",
        "parent_id",
        "tool_call_id",
        "name",
        "author",
        "model",
        "timestamp",
        "created_at",
        "updated_at",
        "create_time",
        "date",
        "index",
        "turn",
        "lang",
        "language",
        "annotations",
        "metadata",
    }
)


def changes_learning(key: str) -> bool:
    """Whether a key that no form understands may not be left out."""
    known = key in REASONING or key in _HARMLESS
    return not known and any(word.lower() in _CHANGES_LEARNING for word in _WORD.findall(key))


def is_reported(key: str) -> bool:
    """Whether it is said that a key is left out."""
    return key not in (*PARTS, *REASONING, *LOSS_KEYS, *_HARMLESS)
