"""`megatron-bar init`: what it writes is an example as it stands, told from where it is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_bar.cli import main
from megatron_bar.cli.init import starts
from megatron_bar.launch.slurm.site import load_site
from megatron_bar.methods.load import load_recipe

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize("name", sorted(starts()))
def test_a_start_is_the_example_and_a_site(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", name, "my folder"]) == 0
    recipe, site = Path("my folder", f"{name}.yaml"), Path("my folder", "site.yaml")
    assert f"megatron-bar run 'my folder/{name}.yaml'" in capsys.readouterr().out
    assert (
        load_recipe(recipe, values=False).name
        == load_recipe(EXAMPLES / f"{name}.yaml", values=False).name
    )
    load_site(site)
    commands = re.findall(r"^# +megatron-bar (.*)", recipe.read_text(), re.MULTILINE)
    assert commands and not re.search(r"examples/|mycluster/", " ".join(commands))
    assert _keys(recipe) == _keys(EXAMPLES / f"{name}.yaml")


def test_nothing_is_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("site.yaml").write_text("account: mine\n")
    assert main(["init", "toy"]) == 0
    assert "site.yaml is there already, and stays" in capsys.readouterr().out
    Path("toy.yaml").write_text("name: mine\n")
    assert main(["init", "toy"]) == 1
    assert "toy.yaml is there already" in capsys.readouterr().err
    assert Path("toy.yaml").read_text() == "name: mine\n"
    assert Path("site.yaml").read_text() == "account: mine\n"


def test_what_there_is_to_start_from(capsys):
    assert main(["init"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {"toy", "toy-fast", "law", "bar-7b"} <= told.keys() and "toy-compare" not in told
    assert main(["init", "lwa"]) == 1
    assert "write one of" in capsys.readouterr().err


def test_the_recipe_in_the_readme_is_the_law_example():
    (quoted,) = re.findall(
        r"^```yaml\n(name: .*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert yaml.safe_load(quoted) == _keys(EXAMPLES / "law.yaml")


def _keys(recipe: Path) -> dict[str, Any]:
    return yaml.safe_load(recipe.read_text())
