"""What a model card says of a model: how it was made if that is known, and nothing else if not."""

from __future__ import annotations

import pytest

from megatron_bar.checkpoints.model_card import Origin, write_model_card
from megatron_bar.models.presets import PRESETS
from megatron_bar.recipe.methods import METHODS

DENSE = PRESETS["toy"]


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_card_is_its_own(method, tmp_path):
    routes = method in ("bar", "flexolmo", "btx")
    write_model_card(tmp_path, DENSE.with_experts(3) if routes else DENSE,
                     Origin(method, METHODS[method].MADE))
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
