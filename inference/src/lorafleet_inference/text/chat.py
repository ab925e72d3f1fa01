"""Chat templates: messages to prompt text, with the model's template or an adapter's own."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from lorafleet_inference.errors import InvalidValue
from lorafleet_inference.text.files import TextFileError, read_limited, read_tokenizer_config

Message = Mapping[str, str]
"""`role`, `content` and, where given, `name`."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """One Jinja template and the special tokens it may use."""

    source: str
    special_tokens: Mapping[str, str]

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt that asks for the next message.

        Raises:
            InvalidValue: the template refuses these messages; its own words are in the message.
        """
        try:
            rendered, _ = render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                chat_template=self.source,
                add_generation_prompt=True,
                **self.special_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, ArithmeticError) as error:
            raise InvalidValue(f"the chat template refused the messages: {error}", param="messages") from error
        return str(rendered[0])


def read_template_source(directory: Path) -> str | None:
    """Return the default chat template of a model's or adapter's folder: chat_template.jinja, else tokenizer_config.json.

    Raises:
        TextFileError: a file is malformed.
    """
    source = read_limited(directory / "chat_template.jinja")
    if source is not None:
        return source
    config = read_tokenizer_config(directory)
    if config is None or config.chat_template is None:
        return None
    if isinstance(config.chat_template, str):
        return config.chat_template
    by_name = {entry.name: entry.template for entry in config.chat_template}
    return by_name.get("default")


class ChatTemplates:
    """The template of the base, and those that adapters bring along, by content digest."""

    def __init__(self, base: ChatTemplate | None, special_tokens: Mapping[str, str], *, max_cached: int = 1024) -> None:
        self._base = base
        self._special_tokens = special_tokens
        self._cache: OrderedDict[str, ChatTemplate | None] = OrderedDict()
        self._max_cached = max_cached

    async def find(self, digest: str | None, directory: Path | None) -> ChatTemplate:
        """Return the template for an adapter (its own where its folder has one) or, with no digest, for the base.

        Raises:
            InvalidValue: there is none, or the adapter's is malformed.
        """
        template = None
        if digest is not None and directory is not None:
            template = await self._of_adapter(digest, directory)
        template = template or self._base
        if template is None:
            raise InvalidValue("this model has no chat template: use /v1/completions", param="messages")
        return template

    async def _of_adapter(self, digest: str, directory: Path) -> ChatTemplate | None:
        if digest in self._cache:
            self._cache.move_to_end(digest)
            return self._cache[digest]
        try:
            source = await asyncio.to_thread(read_template_source, directory)
        except TextFileError as error:
            raise InvalidValue(f"the adapter's own chat template cannot be read: {error}", param="model") from error
        template = None if source is None else ChatTemplate(source, self._special_tokens)
        self._cache[digest] = template
        if len(self._cache) > self._max_cached:
            self._cache.popitem(last=False)
        return template
