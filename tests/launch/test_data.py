"""`megatron-bar data`: before a run, without its ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from megatron_bar.cli import main
from megatron_bar.data import toy
from megatron_bar.data.store import StoredDocuments
from megatron_bar.data.tokenizer import train_tokenizer

TOY = Path(__file__).parents[2] / "examples" / "toy.yaml"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe whose anchor is no more than a tokenizer: data need no model."""
    folder = tmp_path_factory.mktemp("data")
    texts = toy.texts("math", "train", 50, 0)
    train_tokenizer(texts, 400, folder / "anchor", toy.CHAT_TEMPLATE)
    (folder / "sums.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    chats = [{"toy": "math", "count": 40}, {"toy": "general", "count": 20}]
    training = dict(sequence_length=192, batch_size=4, steps=6)
    content = {
        "name": "mini", "runs": str(folder / "runs"), "anchor": str(folder / "anchor"),
        "domains": {"math": {
            "midtrain": training | {"data": [
                {"path": str(folder / "sums.jsonl"), "weight": 3},
                {"toy": "code", "count": 30, "weight": 1},
            ]},
            "sft": training | {"data": chats},
        }},
        "route": {"fraction": 0.5, "training": training},
    }
    (folder / "mini.yaml").write_text(yaml.safe_dump(content))
    return folder / "mini.yaml"


def _prepared(recipe: Path) -> dict[str, int]:
    manifests = (recipe.parent / "runs" / "mini" / "data").rglob("manifest.json")
    return {path.parent.name.rpartition("-")[0]: path.stat().st_mtime_ns for path in manifests}


def test_prepare_then_prepare_again(recipe, capsys):
    assert main(["data", "prepare", str(recipe), "math/midtrain", "--processes", "1"]) == 0
    assert set(_prepared(recipe)) == {"sums", "code"}
    assert main(["data", "prepare", str(recipe), "seed=0"]) == 0
    made = _prepared(recipe)
    assert set(made) == {"sums", "code", "math", "general"}  # route samples what sft made
    assert main(["data", "prepare", str(recipe)]) == 0
    assert _prepared(recipe) == made
    shown = capsys.readouterr().out
    folder = next((recipe.parent / "runs" / "mini" / "data" / "texts").glob("sums-*"))
    assert f"sums: {StoredDocuments(folder).tokens} tokens in 50 documents" in shown


@pytest.mark.parametrize("stage, source", [
    ("math/midtrain", "sums"), ("math/sft", "general"), ("routed", "math"),
])
def test_show(recipe, stage, source, capsys):
    arguments = ["data", "show", str(recipe), stage, "--items", "40", "--step", "2"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert f"{stage}, step 2 of 6: 4 rows" in shown
    assert f"source {source}: " in shown and "⟦" in shown
    assert ("mixture" if stage == "math/midtrain" else "% full") in shown
    assert main(arguments) == 0
    assert capsys.readouterr().out == shown
    assert main([*arguments[:-1], "3"]) == 0
    assert capsys.readouterr().out != shown


@pytest.mark.parametrize("arguments, message", [
    (["prepare", "RECIPE", "math/rlvr"], "no stage 'math/rlvr' reads prepared data; there are"),
    (["show", "RECIPE", "merged"], "no stage 'merged'"),
    (["show", "RECIPE", "math/sft", "--step", "0"], "counted from 1"),
    (["show", "RECIPE", "math/sft", "--step", "7"], "math/sft has 6 steps"),
    (["prepare", "RECIPE", "anchor=nowhere"], "nowhere is not a folder"),
    (["prepare", "RECIPE", "chat_template=chatml"], "'chatml' is unknown"),
    (["prepare", str(TOY), "runs=OUT"], "trains its own tokenizer"),
    (["prepare", "RECIPE", "name=x", "domains.math.sft.data=[{toy: math, count: 2, weight: 0}]"],
     "weight is 0"),
])
def test_wrong_input_gets_one_line(recipe, arguments, message, tmp_path, capsys):
    filled = [a.replace("RECIPE", str(recipe)).replace("OUT", str(tmp_path)) for a in arguments]
    assert main(["data", *filled]) == 1
    shown = capsys.readouterr().err
    assert message in shown and len(shown.strip().splitlines()) == 1


@pytest.mark.parametrize("stage, overrides, message", [
    ("math/sft", "domains.math.sft.sequence_length=60", "truncated"),
    ("math/sft", "domains.math.sft.sequence_length=60 domains.math.sft.overlong=drop",
     "dropped as too long"),
    ("math/midtrain", "domains.math.midtrain.steps=null domains.math.midtrain.tokens=10k",
     "step 1 of 14:"),  # 10,000 / (4 x 192)
    ("math/midtrain", "domains.math.midtrain.steps=null domains.math.midtrain.epochs=1",
     "step 1 of 4:"),  # 2,679 tokens make 14 rows
])
def test_what_the_recipe_tells_is_done(recipe, stage, overrides, message, capsys):
    assert main(["data", "show", str(recipe), stage, *overrides.split()]) == 0
    assert message in capsys.readouterr().out.replace("\n", " ")
