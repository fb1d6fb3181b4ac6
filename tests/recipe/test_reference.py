"""docs/recipe.md says what the dataclasses say."""

from __future__ import annotations

from pathlib import Path

from megatron_bar.recipe import reference

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == reference.reference(), "docs/recipe.md is stale: run make docs"


def test_comments_behind_and_above_a_key_are_its_meaning():
    page = reference.reference()
    assert (
        "| `anchor` | `str \\| None` | | The post-trained model: a Hugging Face folder, or "
        "OWNER/NAME or OWNER/NAME@REVISION of the hub |"
    ) in page
    assert "| `lr` | `float` | `1e-4` |" in page and "| `lr` | `float` | `6e-7` |" in page
    assert (
        "| `recompute` | `str` | `none` | none, moe or full. Activations to compute a second time"
    ) in page
    assert "Has the keys of [Training](#training) as well" in page
