"""Renders a chat template, and says how it failed if it did."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

Message = Mapping[str, Any]
"""`role`, `content` (text, or a list of parts) and, where given, `name`."""
MAX_RENDERED_CHARS = 64 << 20
"""Far above any context; a template that makes more of a request is out of hand."""


class Failing(StrEnum):
    """How a template failed."""

    MALFORMED = "malformed"
    """It is no template."""
    REFUSED = "refused"
    """It does not take these messages."""
    OUT_OF_HAND = "out of hand"
    """It recurses without end, or takes more time or memory than it may."""


class TemplateFailure(Exception):
    """A template has no answer; the message says why, in its own words where it has some."""

    def __init__(self, failing: Failing, message: str) -> None:
        super().__init__(message)
        self.failing = failing


def render(source: str, messages: Sequence[Message], special_tokens: Mapping[str, str]) -> str:
    """Return the prompt that asks for the next message.

    Raises:
        TemplateFailure: the template failed, however it did.
    """
    try:
        rendered, _ = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=source,
            add_generation_prompt=True,
            **special_tokens,
        )
        text = str(rendered[0])
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
