"""Chat templates: messages to prompt text, with the model's template or an adapter's own."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

import msgspec

from lorafleet_contract.reasons import Reason
from lorafleet_inference.errors import AdapterError, InvalidValue
from lorafleet_inference.text.conversation import Conversation, Message
from lorafleet_inference.text.files import (
    TextFileError,
    TokenizerConfig,
    read_generation_fields,
    read_limited,
    read_tokenizer_config,
)
from lorafleet_inference.text.rendering import Failing, TemplateFailure, render
from lorafleet_inference.text.template_workers import TemplateWorkers

THREAD_CHARS = 8192
"""Longer conversations, and those with calls, documents or variables of any size, are rendered in a thread, where the template
is the base's own."""
NEEDLE = "48151623"
"""A text that no template changes the case or the spacing of."""
MAX_REQUEST_TEMPLATES = 64
"""Templates of requests that are remembered with the form that they take."""


class ContentForm(Enum):
    """What a template takes as the content of a message."""

    TEXT = auto()
    PARTS = auto()
    """A list of `{"type": "text", "text": ...}` and nothing else."""
    NONE = auto()
    """Neither shows up in the prompt."""


class ChatTemplate:
    """One Jinja template and the special tokens it may use. With `workers` it is a stranger's and is rendered by them."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], workers: TemplateWorkers | None = None) -> None:
        self.source = source
        self._special_tokens = special_tokens
        self._workers = workers
        self._form: ContentForm | None = None

    async def render(self, asked: Conversation) -> str:
        """Return the prompt.

        Raises:
            InvalidValue: the template refuses these messages, gets out of hand, or does not show what a user says.
        """
        if self._form is None:
            self._form = await self._find_form()
        if self._form is ContentForm.NONE:
            raise InvalidValue("the chat template leaves out what the user says", param="messages")
        try:
            messages = tuple(_in_form(message, self._form) for message in asked.messages)
            return await self._render(msgspec.structs.replace(asked, messages=messages))
        except TemplateFailure as failure:
            fields = {Failing.NO_DOCUMENTS: "documents", Failing.NO_TOOLS: "tools" if asked.tools else "messages"}
            raise InvalidValue(_sentence(failure), param=fields.get(failure.failing, "messages")) from failure

    async def _render(self, asked: Conversation) -> str:
        if self._workers is not None:
            return await self._workers.render(self.source, asked, self._special_tokens)
        has_more = asked.has_calls or asked.documents or asked.variables or asked.tools
        if has_more or asked.num_chars > THREAD_CHARS:
            return await asyncio.to_thread(render, self.source, asked, self._special_tokens)
        return render(self.source, asked, self._special_tokens)

    async def _find_form(self) -> ContentForm:
        """Try both forms; a template that takes texts gets texts."""
        has_answered = False
        for form in (ContentForm.TEXT, ContentForm.PARTS):
            try:
                text = await self._render(Conversation((_in_form({"role": "user", "content": NEEDLE}, form),)))
            except TemplateFailure as failure:
                if failure.failing is not Failing.REFUSED:
                    return ContentForm.TEXT  # the request's own rendering says it
                continue
            has_answered = True
            if NEEDLE in text and "'type'" not in text:  # else the list was written out as Python shows it
                return form
        return ContentForm.NONE if has_answered else ContentForm.TEXT


def _in_form(message: Message, form: ContentForm) -> Message:
    content = message["content"]
    if form is ContentForm.PARTS:
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        return {**message, "content": parts}
    return message if isinstance(content, str) else {**message, "content": "\n".join(part["text"] for part in content)}


def _sentence(failure: TemplateFailure) -> str:
    what = {
        Failing.MALFORMED: "the chat template is malformed",
        Failing.REFUSED: "the chat template refused the messages",
        Failing.NO_DOCUMENTS: "the chat template has no place for documents",
        Failing.NO_TOOLS: "the chat template has no place for tools",
        Failing.OUT_OF_HAND: "the chat template got out of hand",
    }
    return f"{what[failure.failing]}: {failure}"


def judge_template(directory: Path, special_tokens: Mapping[str, str], workers: TemplateWorkers) -> None:
    """Try an adapter's own chat template once; blocks.

    A template that refuses the one message it is tried with may take others, so that is no reason.

    Raises:
        AdapterError: ARTIFACT_INVALID: it cannot be read, is malformed, or gets out of hand.
    """
    try:
        read_generation_fields(directory)
        source = read_template_source(directory)
        own = (read_tokenizer_config(directory) or TokenizerConfig()).special_tokens
        if source is not None:
            trial = Conversation(({"role": "user", "content": NEEDLE},))
            workers.render_now(source, trial, {**special_tokens, **own})
    except TextFileError as error:
        raise AdapterError(Reason.ARTIFACT_INVALID, str(error)) from error
    except TemplateFailure as failure:
        if failure.failing is not Failing.REFUSED:
            raise AdapterError(Reason.ARTIFACT_INVALID, _sentence(failure)) from failure


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


@dataclass(frozen=True, slots=True)
class OwnWords:
    """What an adapter's folder says of texts."""

    template: ChatTemplate | None = None
    eos_token: str | None = None
    """It ends its answers beside the base's, and so do these."""
    eos_token_ids: tuple[int, ...] = ()


class ChatTemplates:
    """The template of the base, and what adapters bring along, by content digest."""

    def __init__(
        self,
        base: ChatTemplate | None,
        special_tokens: Mapping[str, str],
        workers: TemplateWorkers,
        *,
        max_cached: int = 1024,
    ) -> None:
        self.base = base
        self._special_tokens = special_tokens
        self._workers = workers
        self._cache: OrderedDict[str, OwnWords] = OrderedDict()
        self._max_cached = max_cached
        self._of_requests: OrderedDict[str, ChatTemplate] = OrderedDict()

    def of_request(self, source: str) -> ChatTemplate:
        """Return a template that a request brings along: a stranger's."""
        template = self._of_requests.get(source)
        if template is None:
            template = self._of_requests[source] = ChatTemplate(source, self._special_tokens, self._workers)
            if len(self._of_requests) > MAX_REQUEST_TEMPLATES:
                self._of_requests.popitem(last=False)
        self._of_requests.move_to_end(source)
        return template

    async def find(self, digest: str | None, directory: Path | None) -> ChatTemplate:
        """Return the template for an adapter (its own where its folder has one) or, with no digest, for the base.

        Raises:
            InvalidValue: there is none, or the adapter's is malformed.
        """
        template = (await self.own(digest, directory)).template or self.base
        if template is None:
            raise InvalidValue("this model has no chat template: use /v1/completions", param="messages")
        return template

    async def own(self, digest: str | None, directory: Path | None) -> OwnWords:
        """Return what an adapter's folder says; nothing for the base.

        Raises:
            InvalidValue: a file is malformed.
        """
        if digest is None or directory is None:
            return OwnWords()
        words = self._cache.get(digest)
        if words is None:
            try:
                words = await asyncio.to_thread(self._read, directory)
            except TextFileError as error:
                raise InvalidValue(f"a file of the adapter cannot be read: {error}", param="model") from error
            self._cache[digest] = words
            if len(self._cache) > self._max_cached:
                self._cache.popitem(last=False)
        self._cache.move_to_end(digest)
        return words

    def _read(self, directory: Path) -> OwnWords:
        source = read_template_source(directory)
        own = (read_tokenizer_config(directory) or TokenizerConfig()).special_tokens
        template = None
        if source is not None:
            template = ChatTemplate(source, {**self._special_tokens, **own}, self._workers)
        return OwnWords(template, own.get("eos_token"), read_generation_fields(directory).eos_token_ids)
