"""Each floor of the house imports only from those below it, and from itself."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "megatron_bar"
# From the ground up.
FLOORS = [
    "runtime",
    "recipe",
    "models",
    "checkpoints",
    "data",
    "training",
    "verifiers",
    "generation",
    "rlvr",
    "analysis",
    "evaluation",
    "costs",
    "stages",
    "methods",
    "comparison",
    "launch",
    "api",
    "cli",
]


def _imports(path: Path) -> set[str]:
    """The floors that a file imports from, inside functions too."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    parts = [module.split(".") for module in modules]
    return {part[1] for part in parts if part[0] == "megatron_bar" and len(part) > 1}


def test_every_floor_stands_on_those_below():
    climbing = []
    for path in sorted(PACKAGE.rglob("*.py")):
        floor = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if floor in ("__init__", "__main__"):
            continue
        for other in _imports(path):
            if FLOORS.index(other) > FLOORS.index(floor):
                climbing.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert not climbing
