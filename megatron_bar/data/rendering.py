"""A chat template as a program: what its source tells about it, and how it is run.

The text of a run is what transformers' `apply_chat_template` makes, whatever the template does.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from megatron_bar.runtime.errors import BarError

# What makes another text of the same conversation at another time.
_CHANGING_FUNCTIONS = {"strftime_now": "today's date", "lipsum": "random words"}
_CHANGING_FILTER = "random"
_IN_TEMPLATE = ("<template>", "<unknown>")  # what Python calls the file of a template's lines

Span = tuple[int, int]


@dataclass(frozen=True)
class TemplateFacts:
    """Facts that a template's source tells, comments and text apart."""

    marks_replies: bool  # with {% generation %}
    words: frozenset[str]  # names and texts that it works with: keys that it may read are there


class _Generation(Extension):
    """`{% generation %}` as a tag that is known, so that a source can be parsed."""

    tags: ClassVar[set[str]] = {"generation"}  # type: ignore[misc]  # one of jinja2's class, too

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)


@lru_cache(maxsize=64)
def template_facts(template: str) -> TemplateFacts:
    """Raises BarError for a template that isn't one, and for one whose text changes by itself."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    try:
        tree = environment.parse(template)
    except TemplateSyntaxError as error:
        raise BarError(
            f"the chat template is broken in line {error.lineno}: {error.message}"
        ) from None
    except RecursionError:
        raise BarError("the chat template is broken: it is nested too deep") from None
    names = {node.name for node in tree.find_all(nodes.Name)}
    changing = [
        f"{name} writes {what}" for name, what in _CHANGING_FUNCTIONS.items() if name in names
    ]
    if any(node.name == _CHANGING_FILTER for node in tree.find_all(nodes.Filter)):
        changing.append(f"the filter {_CHANGING_FILTER} chooses anew each time")
    if changing:
        raise BarError(
            f"the chat template is another one each time: {changing[0]} into it, so that no run "
            "can be repeated; give chat_template a .jinja file in which it is fixed"
        )
    words = {node.attr for node in tree.find_all(nodes.Getattr)}
    words |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    marks = any(
        node.identifier.endswith("_Generation") for node in tree.find_all(nodes.ExtensionAttribute)
    )
    return TemplateFacts(marks, frozenset(words))


def run_template(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    template: str,
    prompt: bool,
) -> tuple[str, list[Span]]:
    """The text of a conversation and the spans in it that the template marks.

    `prompt` asks for a reply at the end. Raises BarError for whatever the template fails with.
    """
    facts = template_facts(template)
    try:
        # What apply_chat_template itself calls; it maps the spans to tokens less exactly than we.
        names: dict[str, Any] = {**tokenizer.special_tokens_map}
        rendered: tuple[list[str], list[list[Span]]] = render_jinja_template(  # type: ignore[assignment]  # it says str
            [list(messages)],
            chat_template=template,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=facts.marks_replies,
            **names,
        )
    except TemplateError as error:
        raise BarError(f"the chat template refuses a conversation: {error}") from None
    except Exception as error:  # a template is a program of the user's, and may fail with any
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename in _IN_TEMPLATE
        ]
        place = f" in line {lines[-1]}" if lines else ""
        raise BarError(
            f"the chat template fails{place}: {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from None
    texts, spans = rendered
    return texts[0], spans[0] if spans else []
