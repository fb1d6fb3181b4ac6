"""What the documentation quotes exists: commands, messages, files, code."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_bar.cli.parser import build_parser
from megatron_bar.costs.compute import Machine
from megatron_bar.models.presets import PRESETS
from megatron_bar.stages.made_of import changes, record

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "slurm" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def _texts(path: Path) -> Iterator[str]:
    """The strings in a Python file, with ... for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "..."
                          for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _messages() -> list[str]:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    return re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)


@pytest.fixture(scope="module")
def said() -> list[str]:
    """Everything the code may say, the job script included."""
    code = [text for path in sorted((ROOT / "megatron_bar").rglob("*.py"))
            for text in _texts(path)]
    script = (ROOT / "slurm" / "stage.sbatch.j2").read_text()
    return [*code, re.sub(r"\$\w+|{{.*?}}", "...", script)]


@pytest.mark.parametrize("message", _messages())
def test_a_quoted_message_is_one_of_ours(message, said):
    pattern = re.compile(".*?".join(map(re.escape, message.split("..."))))
    assert any(pattern.search(text) for text in said)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_quoted_commands_are_understood(page):
    parser = build_parser()
    for _, block in _FENCE.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("megatron-bar "):
                _, rest = parser.parse_known_args(shlex.split(line, comments=True)[1:])
                assert not [word for word in rest if word.startswith("-")], line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = _LINK.findall(_FENCE.sub("", page.read_text()))
    assert not [target for target in targets if not (page.parent / target).exists()]


def _example(of: str) -> dict:
    """The names that an example in Python defines, by a word that it has."""
    page = (ROOT / "docs" / "extending.md").read_text()
    (example,) = [code for language, code in _FENCE.findall(page)
                  if language == "python" and of in code]
    names: dict = {}
    exec(example, names)
    return names


def test_the_example_of_a_verifier_is_one():
    score = _example("def score")["score"]
    reference = "26 U.S.C. 501 and 42 U.S.C. 1983"
    assert score("", "See 42 U.S.C. 1983.", reference) == 0.5
    assert score("", "No idea.", reference) == 0


def test_the_example_of_a_stage_is_one():
    stage = _example("QuantizeStage")["QuantizeStage"]("int8", {"model": "hf"})
    made = record(stage)
    assert made == {"kind": "quantize", "settings": {"bits": 8}, "outside": {}, "files": {}}
    assert changes(made, stage) == []
    fewer = dataclasses.replace(stage, bits=4)
    assert list(map(str, changes(made, fewer))) == ["bits is 4, was 8"]
    plan = stage.plan(PRESETS["olmo2-1b"], Machine(), torch.bfloat16)
    assert plan.seconds > 0 and plan.memory.total < 8 << 30 and not stage.ON_GPU
