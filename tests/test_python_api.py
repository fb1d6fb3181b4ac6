"""`import megatron_bar`: quick, complete, typed, and as the documentation uses it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import megatron_bar
from tests.models_hf import TALKING, random_dense, random_experts, talking

ROOT = Path(__file__).parents[1]
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_import_loads_nothing_that_computes():
    code = (
        "import sys, megatron_bar; megatron_bar.Recipe; megatron_bar.BarError; "
        "print([m for m in ('torch', 'megatron', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_all_names_are_there_where_a_type_checker_looks():
    tree = ast.parse(Path(megatron_bar.__file__).read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    found = {name: f"megatron_bar.{module}" for name, module in megatron_bar._MODULE_OF.items()}
    assert seen == found and set(megatron_bar.__all__) == set(found)
    for name in megatron_bar.__all__:
        assert getattr(megatron_bar, name).__name__ == name
    assert set(megatron_bar.__all__) <= set(dir(megatron_bar))
    with pytest.raises(AttributeError, match="no attribute 'ran'"):
        megatron_bar.ran  # noqa: B018


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder with the models that the pages name, small."""
    talking(random_dense(**TALKING), tmp_path / "OLMo-2-0425-1B-Instruct")
    talking(random_experts(3, **TALKING), tmp_path / "runs" / "toy" / "hf" / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.distributed
def test_the_page_does_what_it_says(workplace, capsys):
    """Its blocks one after the other, in one process, as a notebook runs its cells."""
    names: dict[str, object] = {}
    for block in _PYTHON.findall((ROOT / "docs" / "python-api.md").read_text()):
        exec(block, names)
    assert names["routed"].experts == ("anchor", "math", "code")
    assert names["without"].shares["math"] == 0
    assert (workplace / "work" / "math-sft" / "metrics.jsonl").is_file()
    assert set(names["done"].scores["routed"]) == {"math"} and names["done"].report.is_file()
    capsys.readouterr()
    first = _PYTHON.search((ROOT / "docs" / "python-api.md").read_text())[1]
    training = [line for line in first.splitlines() if "branches.append" in line]
    exec("\n".join(line.strip() for line in training), names)  # a cell that is run again
    assert "code-sft: done already" in capsys.readouterr().out
    with pytest.raises(megatron_bar.BarError, match=r"code-sft holds another training .*sft\.lr"):
        megatron_bar.sft(
            names["start"],
            megatron_bar.Training(data=names["data"]["code"], **names["few"] | {"lr": 1e-3}),
            "work/code-sft",
        )


@pytest.mark.slow
def test_the_readme_does_what_it_says(workplace):
    blocks = _PYTHON.findall((ROOT / "README.md").read_text())
    assert blocks
    for block in blocks:
        exec(block, {})


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda api: api.sft("none", api.Training(), "out"),
            "none is not a megatron-bar checkpoint",
        ),
        (lambda api: api.sft("none", api.Rlvr, "out"), "sft: give a Training, not a type"),
        (lambda api: api.dpo("none", api.Training(), "out"), "dpo: give a Dpo, not a Training"),
        (lambda api: api.midtrain("none", api.Training(steps="few"), "out"), "midtrain: steps: "),
        (lambda api: api.run(api.Recipe(name="law")), "recipe law: "),
        (lambda api: api.run("none.yaml"), "none.yaml"),
        (lambda api: api.load("none"), "none is not a folder"),
        (lambda api: api.route("none", api.Route(), {}, "out"), "route: data is empty"),
    ],
)
def test_what_the_user_can_mend_is_one_line(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(megatron_bar.BarError) as raised:
        call(megatron_bar)
    assert message in str(raised.value) and "Traceback" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
