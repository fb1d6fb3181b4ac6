"""Public docstrings begin with a verb or a whole noun phrase, not with a fragment."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "megatron_bar"
FRAGMENTS = frozenset(
    """
    about after as at before between by for from how if in into like of on out over per since that
    those through to under until what when where which while why with without
""".split()
)


def _public(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef]:
    """A module, its public classes and functions, and their public methods."""
    yield tree
    holders: list[ast.Module | ast.ClassDef] = [tree]
    for holder in holders:
        for node in holder.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                yield node
                if isinstance(node, ast.ClassDef):
                    holders.append(node)


def _fragments(path: Path) -> Iterator[str]:
    for node in _public(ast.parse(path.read_text())):
        text = ast.get_docstring(node)
        if text and text.split()[0].strip(",:").lower() in FRAGMENTS:
            line = text.splitlines()[0]
            yield f"{path.relative_to(PACKAGE.parent)}:{node.body[0].lineno}: {line}"


def test_public_docstrings_are_no_fragments():
    found = [line for path in sorted(PACKAGE.rglob("*.py")) for line in _fragments(path)]
    assert not found, "\n".join(["begin with a verb or a noun phrase:", *found])


def test_a_fragment_is_found_with_its_place(tmp_path, monkeypatch):
    path = tmp_path / "megatron_bar" / "costs.py"
    path.parent.mkdir()
    path.write_text(
        '"""Costs."""\n\n\nclass Memory:\n    def total(self):\n'
        '        """Of the GPU."""\n\n    def _own(self):\n        """Of a rank."""\n'
    )
    monkeypatch.setitem(globals(), "PACKAGE", path.parent)
    assert list(_fragments(path)) == ["megatron_bar/costs.py:6: Of the GPU."]
