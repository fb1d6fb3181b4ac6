"""What a model card says of a model: how it was made if that is known, and nothing else if not."""

from __future__ import annotations

import json

import pytest
import yaml

from megatron_bar.checkpoints.convert import export_hf, import_hf
from megatron_bar.checkpoints.model_card import Origin, Step, add_scores, write_model_card
from megatron_bar.cli import main
from megatron_bar.methods import METHODS
from megatron_bar.models.presets import PRESETS
from megatron_bar.runtime.errors import BarError
from tests.models_hf import imported, random_dense

DENSE = PRESETS["toy"]


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_card_is_its_own(method, tmp_path):
    routes = method in ("bar", "flexolmo", "btx")
    write_model_card(
        tmp_path, DENSE.with_experts(3) if routes else DENSE, Origin(method, METHODS[method].MADE)
    )
    card = (tmp_path / "README.md").read_text()
    others = [name for name in METHODS if METHODS[name].MADE in card]
    assert others == [method] and method in card.splitlines()[2]
    assert ("2604.18473" in card) == (method == "bar")
    assert ("bit for bit" in card) == ("mixture-of-experts" in card) == routes
    assert "{" not in card


@pytest.mark.parametrize("model", [DENSE, DENSE.with_experts(3)], ids=["dense", "experts"])
def test_a_model_of_unknown_making_is_not_called_bar(model, tmp_path):
    write_model_card(tmp_path, model)
    card = (tmp_path / "README.md").read_text()
    assert "arXiv" not in card and " bar" not in card.splitlines()[2] and "bit for" not in card
    assert ("# A mixture of experts" in card) == (model.num_experts is not None)


def test_a_card_tells_what_went_in_and_what_it_costs_to_run(tmp_path):
    model = PRESETS["olmo2-7b"].with_experts(5)
    write_model_card(
        tmp_path,
        model,
        Origin(
            "bar",
            METHODS["bar"].MADE,
            "olmo2-7b-law",
            {
                "anchor": f"allenai/OLMo-2-1124-7B-Instruct at commit {'a' * 40}",
                "pretrained": "base",
            },
            ["allenai/OLMo-2-1124-7B-Instruct"],
            [
                Step("law/midtrain", ["law"], "50,000 supervised tokens"),
                Step("law/rlvr", ["law_questions", "general"], "300 rollouts"),
            ],
        ),
        chats=True,
    )
    card = (tmp_path / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["base_model"] == ["allenai/OLMo-2-1124-7B-Instruct"] and "license" not in head
    assert "# license: to be added" in card and "## Licence" in card
    assert "# olmo2-7b-law" in card and f"at commit {'a' * 40} (anchor), base (pretrained)" in card
    assert "| law/midtrain | law | 50,000 supervised tokens |" in card
    assert "| law/rlvr | law_questions, general | 300 rollouts |" in card
    # 32 layers of 4096 x 4096 x 4 and 3 x 4096 x 11008 each, 2 x 100,352 x 4096: 7.3 and 24.6.
    words = " ".join(card.split())
    assert "| parameters | 24.6 billion |" in card
    assert (
        "**Every expert runs for every token.** The dense model that it grew from has 7.3 "
        "billion: this one takes 3.4 times its memory, and about 3.5 times its"
    ) in words
    assert "## Scores\n\nNot evaluated yet.\n\n## Licence" in card and "apply_chat_template" in card


def test_scores_take_the_place_of_those_before(tmp_path):
    origin = Origin("bar", "Made so.", "law", {"anchor": "base"})
    write_model_card(tmp_path, PRESETS["olmo2-7b"].with_experts(7, 5), origin)
    without = (tmp_path / "README.md").read_text()
    for score in ("0.25", "0.5"):
        add_scores(tmp_path, ["| task | score |", "|---|---|", f"| law | {score} |"])
        card = (tmp_path / "README.md").read_text()
        assert (
            card.replace(f"| task | score |\n|---|---|\n| law | {score} |", "Not evaluated yet.")
            == without
        )
    (tmp_path / "README.md").write_text("my own card")
    add_scores(tmp_path, ["none"])
    assert (tmp_path / "README.md").read_text() == "my own card"


def test_with_fewer_active_experts_fewer_run(tmp_path):
    write_model_card(tmp_path, PRESETS["olmo2-7b"].with_experts(7, 5))
    words = " ".join((tmp_path / "README.md").read_text().split())
    assert "5 of 7 experts run for each token." in words and "about 3.5 times its" in words
    assert "apply_chat_template" not in words and "How it was made" not in words


def test_an_export_may_run_fewer_experts_than_were_trained(experts_hf, tmp_path, capsys):
    """Three experts: config.json and card say two, the tensors are the same."""
    import_hf(experts_hf, tmp_path / "checkpoint")
    assert main(["export", str(tmp_path / "checkpoint"), str(tmp_path / "all")]) == 0
    assert (
        main(["export", str(tmp_path / "checkpoint"), str(tmp_path / "two"), "--active", "2"]) == 0
    )
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("all", "two")]
    assert [config["num_experts_per_tok"] for config in configs] == [3, 2]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("all", "two")]
    assert weights[0] == weights[1]
    card = " ".join((tmp_path / "two" / "README.md").read_text().split())
    assert "trained with **3** active experts, and this export runs **2**" in card
    assert "2 of 3 experts run for each token." in card and "the value it was trained" not in card
    assert main(["export", str(tmp_path / "checkpoint"), str(tmp_path / "x"), "--active", "4"]) == 1
    assert "--active 4 is not from 1 to 3, the experts that" in capsys.readouterr().err
    with pytest.raises(BarError, match="is a dense model, which has no experts"):
        export_hf(imported(random_dense(), tmp_path / "dense"), tmp_path / "x", active=1)
