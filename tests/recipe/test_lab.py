"""The lab: what its recipes promise of the base, the data and the systems."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megatron_bar.data import toy
from megatron_bar.data.chat import chat_template
from megatron_bar.data.encoding import encode_conversations
from megatron_bar.data.sources import load_conversations, load_texts
from megatron_bar.data.tokenizer import FUNCTION_TAGS, train_tokenizer
from megatron_bar.methods import METHODS
from megatron_bar.methods.load import load_recipe, load_recipes
from megatron_bar.recipe.schema import Recipe

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def lab() -> Recipe:
    return load_recipe(EXAMPLES / "lab.yaml")


def test_the_base_has_read_every_token_of_every_domain(lab, tmp_path):
    """In a tenth of what it reads. Rows of tokens that it never met would all point one way."""

    def tenth(sources):
        return [dataclasses.replace(source, count=source.count // 10) for source in sources]

    texts = [t for source in tenth(lab.pretrain.training.data) for t in load_texts(source, 0)]
    chats = [c for source in tenth(lab.pretrain.chat) for c in load_conversations(source, 0)]
    spoken = [m["content"] for c in chats for m in c.messages if m.get("content")]
    words = [*texts, *spoken]
    tokenizer = train_tokenizer(words, lab.pretrain.vocab_size, tmp_path, toy.CHAT_TEMPLATE)
    template = chat_template(None, tokenizer)

    def read(conversations):
        encoded = encode_conversations(tokenizer, conversations, template)
        return {int(token) for example in encoded for token in example.ids}

    met = read(chats).union(*tokenizer(texts).input_ids)
    assert set(tokenizer.convert_tokens_to_ids(list(FUNCTION_TAGS))) <= met
    for name, domain in lab.domains.items():
        (task,) = domain.tasks
        assert read(load_conversations(task, 0)) <= met, name


def test_what_the_base_met_of_a_domain_is_little_and_no_held_out_item(lab):
    of_domains = [source for source in lab.pretrain.chat if source.toy != "general"]
    (general,) = [source for source in lab.pretrain.chat if source.toy == "general"]
    assert {source.toy for source in of_domains} == set(lab.domains)
    assert sum(source.count for source in of_domains) < 0.05 * general.count
    for source in of_domains:
        (task,) = lab.domains[source.toy].tasks

        def asked(conversations):
            return {str(c.messages[0]) for c in conversations}

        met = asked(load_conversations(source, 0))
        assert met.isdisjoint(asked(load_conversations(task, 0)))


def test_every_method_stands_in_the_comparison_with_the_same_base_and_steps(lab):
    systems = load_recipes(EXAMPLES / "lab-compare.yaml")
    assert {system.method for system in systems} == set(METHODS)
    for system in systems:
        assert (system.pretrain, system.route) == (lab.pretrain, lab.route)
        for name, domain in system.domains.items():
            assert domain.sft.steps == lab.domains[name].sft.steps
            assert domain.sft.lr == lab.domains[name].sft.lr
            assert domain.rlvr is None
            assert (domain.sft.trainable == []) == (system.method != "bar")
