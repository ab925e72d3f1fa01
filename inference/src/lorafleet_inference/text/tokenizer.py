"""The base model's tokenizer as the API process uses it."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from tokenizers import Tokenizer

from lorafleet_common.errors import ConfigError
from lorafleet_inference.errors import ContextLengthExceeded
from lorafleet_inference.text.chat import ChatTemplate, ChatTemplates, judge_template, read_template_source
from lorafleet_inference.text.detokenizer import Detokenizer
from lorafleet_inference.text.encoding import encode_bounded, encode_last
from lorafleet_inference.text.files import (
    TOKENIZER,
    TextFileError,
    TokenizerConfig,
    read_generation_fields,
    read_tokenizer_config,
)
from lorafleet_inference.text.own_text import OwnTexts
from lorafleet_inference.text.own_tokenizer import OwnTokenizer
from lorafleet_inference.text.pieces import PieceTable
from lorafleet_inference.text.template_workers import TemplateWorkers
from lorafleet_inference.text.tokenizer_files import load_tokenizer

THREAD_CHARS = 8192
"""Longer texts are tokenised in a thread, so that one of a hundred pages does not hold up everybody's streams."""
NUM_ENCODERS = 2
"""Long texts that are tokenised at a time: each takes some hundred bytes a token meanwhile."""

Span = tuple[int, str, int, int]
"""Token id, the token as the vocabulary writes it, and the characters of the text that it stands for: begin and end."""


class Text:
    """Everything between the text of a request and token ids: tokenizer, chat templates, detokeniser."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        templates: ChatTemplates,
        special_tokens: Mapping[str, str],
        workers: TemplateWorkers,
        own: OwnTexts,
    ) -> None:
        self._tokenizer = tokenizer
        self.templates = templates
        self.special_tokens = special_tokens
        self.pieces = PieceTable(tokenizer)
        self._max_piece_bytes = self.pieces.max_bytes()
        self._workers = workers
        self.own = own
        """Of adapters whose tokenizer is another one."""
        self._encoders = ThreadPoolExecutor(NUM_ENCODERS, thread_name_prefix="tokenizer")

    @classmethod
    def load(cls, directory: Path) -> "Text":
        """Read tokenizer.json, tokenizer_config.json and the chat template of a model folder.

        Raises:
            TextFileError: tokenizer.json is missing, or a file is malformed.
        """
        tokenizer, config = load_tokenizer(directory)
        special_tokens = config.special_tokens
        source = read_template_source(directory)
        base = None if source is None else ChatTemplate(source, special_tokens)
        workers = TemplateWorkers()
        templates = ChatTemplates(base, special_tokens, workers)
        return cls(tokenizer, templates, special_tokens, workers, OwnTexts(directory, tokenizer))

    def close(self) -> None:
        """End the processes that work for adapters."""
        self._encoders.shutdown(cancel_futures=True)
        self._workers.close()
        self.own.close()

    def judge(self, directory: Path, num_rows: int) -> OwnTokenizer | None:
        """Look at what an adapter, whose embedding has so many rows, brings along for texts; blocks.

        Returns its tokenizer, None where it is the base's.

        Raises:
            AdapterError: its chat template or its tokenizer cannot be used, or has tokens beyond the embedding.
        """
        judge_template(directory, self.special_tokens, self._workers)
        return self.own.judge(directory, num_rows)

    def special_id(self, text: str) -> int | None:
        """Return the id of a special token."""
        return self._tokenizer.token_to_id(text)

    async def encode(
        self, text: str, *, add_special_tokens: bool, max_tokens: int, field: str, keep_last: int | None = None
    ) -> tuple[int, ...]:
        """Return the token ids of a text; `add_special_tokens` adds bos and eos where the tokenizer does.

        Far longer texts than `max_tokens` are not tokenised to their end; `field` is where they come from. `keep_last`
        takes away from the beginning of the text until so many tokens are left, bos and eos among them.

        Raises:
            ContextLengthExceeded: it has more than `max_tokens` tokens, found out early.
        """
        loop = asyncio.get_running_loop()
        if keep_last is not None and keep_last <= max_tokens:
            if len(text) <= THREAD_CHARS:
                return self._encode_last(text, add_special_tokens, keep_last)
            return await loop.run_in_executor(self._encoders, self._encode_last, text, add_special_tokens, keep_last)
        if len(text) <= THREAD_CHARS:
            return self.encode_now(text, add_special_tokens=add_special_tokens)
        token_ids = await loop.run_in_executor(self._encoders, self._encode_long, text, add_special_tokens, max_tokens)
        if token_ids is None:
            raise ContextLengthExceeded(
                f"this model's maximum context length is {max_tokens} tokens; the prompt, of {len(text)} characters, "
                f"has more",
                param=field,
            )
        return token_ids

    def _encode_long(self, text: str, add_special_tokens: bool, max_tokens: int) -> tuple[int, ...] | None:
        return encode_bounded(
            self._tokenizer,
            text,
            add_special_tokens=add_special_tokens,
            max_tokens=max_tokens,
            max_piece_bytes=self._max_piece_bytes,
        )

    def _encode_last(self, text: str, add_special_tokens: bool, num_tokens: int) -> tuple[int, ...]:
        return encode_last(self._tokenizer, text, add_special_tokens=add_special_tokens, num_tokens=num_tokens)

    async def spans(self, text: str, *, add_special_tokens: bool, max_tokens: int, field: str) -> list[Span]:
        """Return the tokens of a text; `max_tokens` and `field` as of `encode`.

        Raises:
            ContextLengthExceeded: it has more than `max_tokens` tokens.
        """
        if len(text) <= THREAD_CHARS:
            return self._spans(text, add_special_tokens)
        await self.encode(text, add_special_tokens=add_special_tokens, max_tokens=max_tokens, field=field)
        return await asyncio.get_running_loop().run_in_executor(self._encoders, self._spans, text, add_special_tokens)

    def _spans(self, text: str, add_special_tokens: bool) -> list[Span]:
        (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)
        places = zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True)
        return [(token_id, token, *offsets) for token_id, token, offsets in places]

    def encode_now(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """As `encode`, in this thread."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def detokenizer(self, *, strip_leading: bool, skip_special: bool = True, space_special: bool = True) -> Detokenizer:
        """Return a fresh incremental detokeniser.

        `strip_leading`: the text stands by itself, so a tokenizer that marks the start of a text with a space loses
        that space; without it the text continues a prompt and keeps it. The others are those of `Detokenizer`.
        """
        return Detokenizer(
            self.pieces, strip_leading=strip_leading, skip_special=skip_special, space_special=space_special
        )


def judge_texts(base_directory: Path, directory: Path, num_rows: int) -> list[str]:
    """Look at what an adapter brings along for texts, as a pod that serves the base does; blocks.

    Returns lines that say it. A base without a tokenizer is served by no pod; then only the adapter's template is looked at.

    Raises:
        AdapterError: as `Text.judge`.
        ConfigError: the base's tokenizer or template cannot be read.
    """
    if not (base_directory / TOKENIZER).is_file():
        with closing(TemplateWorkers((1,))) as workers:
            config = read_tokenizer_config(base_directory) or TokenizerConfig()
            judge_template(directory, config.special_tokens, workers)
        return ["tokenizer not looked at: the base has none", *_template_and_ends(directory)]
    try:
        text = Text.load(base_directory)
    except TextFileError as error:
        raise ConfigError("--model", str(error)) from error
    with closing(text):
        own = text.judge(directory, num_rows)
    tokenizer = "tokenizer the base's" if own is None else f"tokenizer its own, {own.num_tokens} tokens"
    return [tokenizer, *_template_and_ends(directory)]


def _template_and_ends(directory: Path) -> list[str]:
    template = "the base's" if read_template_source(directory) is None else "its own"
    eos_token = (read_tokenizer_config(directory) or TokenizerConfig()).special_tokens.get("eos_token")
    ends = [
        *([] if eos_token is None else [repr(eos_token)]),
        *map(str, read_generation_fields(directory).eos_token_ids),
    ]
    return [f"chat template {template}", *([f"answers end also with {', '.join(ends)}"] if ends else [])]
