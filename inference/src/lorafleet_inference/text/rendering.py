"""Renders a chat template, and says how it failed if it did."""

from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from lorafleet_inference.text.conversation import Conversation

MAX_RENDERED_CHARS = 64 << 20
"""Far above any context; a template that makes more of a request is out of hand."""


class Failing(StrEnum):
    """How a template failed."""

    MALFORMED = "malformed"
    """It is no template."""
    REFUSED = "refused"
    """It does not take these messages."""
    NO_DOCUMENTS = "no documents"
    """It has no place for documents."""
    NO_TOOLS = "no tools"
    """It has no place for tools, or for calls of them."""
    OUT_OF_HAND = "out of hand"
    """It recurses without end, or takes more time or memory than it may."""


class TemplateFailure(Exception):
    """A template has no answer; the message says why, in its own words where it has some."""

    def __init__(self, failing: Failing, message: str) -> None:
        super().__init__(message)
        self.failing = failing


def render(source: str, asked: Conversation, special_tokens: Mapping[str, str]) -> str:
    """Return the prompt.

    Raises:
        TemplateFailure: the template failed, however it did.
    """
    try:
        if asked.documents and "documents" not in names_in(source):
            raise TemplateFailure(Failing.NO_DOCUMENTS, "it reads none")
        if asked.tools and "tools" not in names_in(source):
            raise TemplateFailure(Failing.NO_TOOLS, "it reads none")
        if asked.has_calls and "tool" not in source:
            raise TemplateFailure(Failing.NO_TOOLS, "it reads no calls")
        rendered, _ = render_jinja_template(
            conversations=[[dict(message) for message in asked.messages]],
            chat_template=source,
            tools=[dict(tool) for tool in asked.tools] or None,
            documents=[dict(document) for document in asked.documents] or None,
            add_generation_prompt=asked.add_generation_prompt,
            continue_final_message=asked.continue_final_message,
            **{**special_tokens, **asked.variables},
        )
        text = str(rendered[0])
    except TemplateFailure:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise TemplateFailure(Failing.MALFORMED, f"{error.message} (line {error.lineno})") from error
    except RecursionError as error:
        raise TemplateFailure(Failing.OUT_OF_HAND, "it recurses too deeply") from error
    except MemoryError as error:
        raise TemplateFailure(Failing.OUT_OF_HAND, "it takes too much memory") from error
    except Exception as error:  # a template may call what it likes, and that may raise what it likes
        raise TemplateFailure(Failing.REFUSED, f"{error}" or type(error).__name__) from error
    if len(text) > MAX_RENDERED_CHARS:
        raise TemplateFailure(Failing.OUT_OF_HAND, f"it makes a text of more than {MAX_RENDERED_CHARS} characters")
    return text


@lru_cache(maxsize=64)
def names_in(source: str) -> frozenset[str]:
    """Return all names that a template's expressions use.

    Raises:
        jinja2.TemplateSyntaxError: it is no template.
    """
    words = jinja2.Environment().lex(source)  # noqa: S701  nothing is rendered
    return frozenset(text for _, kind, text in words if kind == "name")
