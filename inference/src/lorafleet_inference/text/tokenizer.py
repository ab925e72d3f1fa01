"""The base model's tokenizer as the API process uses it."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from lorafleet_inference.errors import ContextLengthExceeded
from lorafleet_inference.text.chat import ChatTemplate, ChatTemplates, judge_template, read_template_source
from lorafleet_inference.text.detokenizer import Detokenizer
from lorafleet_inference.text.files import TextFileError, TokenizerConfig, read_tokenizer_config
from lorafleet_inference.text.pieces import PieceTable
from lorafleet_inference.text.template_workers import TemplateWorkers

THREAD_CHARS = 8192
"""Longer texts are tokenised in a thread, so that one of a hundred pages does not hold up everybody's streams."""
NUM_ENCODERS = 2
"""Long texts that are tokenised at a time: each takes some hundred bytes a token meanwhile."""
FIRST_CHARS_PER_TOKEN = 8
SPARE_TOKENS = 1024
"""Beyond twice the context: what follows a beginning may change how its last words are cut, never most of it."""


class Text:
    """Everything between the text of a request and token ids: tokenizer, chat templates, detokeniser."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        templates: ChatTemplates,
        special_tokens: Mapping[str, str],
        workers: TemplateWorkers,
    ) -> None:
        self._tokenizer = tokenizer
        self.templates = templates
        self.special_tokens = special_tokens
        self.pieces = PieceTable(tokenizer)
        self._max_piece_bytes = self.pieces.max_bytes()
        self._workers = workers
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
        return cls(
            tokenizer, ChatTemplates(base, special_tokens, workers, tokenizer.token_to_id), special_tokens, workers
        )

    def close(self) -> None:
        """End the processes that render adapters' templates."""
        self._encoders.shutdown(cancel_futures=True)
        self._workers.close()

    def judge(self, directory: Path) -> None:
        """Look at what an adapter brings along for texts; blocks.

        Raises:
            AdapterError: ARTIFACT_INVALID: its chat template cannot be used.
        """
        judge_template(directory, self.special_tokens, self._workers)

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
        if keep_last is not None and keep_last < max_tokens:
            if len(text) <= THREAD_CHARS:
                return self._encode_last(text, add_special_tokens, keep_last)
            return await loop.run_in_executor(self._encoders, self._encode_last, text, add_special_tokens, keep_last)
        if len(text) <= THREAD_CHARS:
            return self.encode_now(text, add_special_tokens=add_special_tokens)
        token_ids = await loop.run_in_executor(self._encoders, self._encode_long, text, add_special_tokens, max_tokens)
        if token_ids is None:
            raise ContextLengthExceeded(
                f"the model's context has {max_tokens} tokens; the prompt, of {len(text)} characters, has more",
                param=field,
            )
        return token_ids

    def _encode_long(self, text: str, add_special_tokens: bool, max_tokens: int) -> tuple[int, ...] | None:
        """Return the token ids, None if they are too many; gives up Python's lock for most of the time."""
        if self._max_piece_bytes is not None and len(text) > self._max_piece_bytes * max_tokens:
            return None
        num_chars = max(FIRST_CHARS_PER_TOKEN * max_tokens, THREAD_CHARS)
        while num_chars < len(text):
            if len(self._encode_aside(text[:num_chars], add_special_tokens=False)) > 2 * max_tokens + SPARE_TOKENS:
                return None
            num_chars *= 2
        return tuple(self._encode_aside(text, add_special_tokens=add_special_tokens))

    def _encode_last(self, text: str, add_special_tokens: bool, num_tokens: int) -> tuple[int, ...]:
        """Return the last tokens of a text. Of a long one only an end is tokenised, with a good part more than is kept."""
        num_chars = max(FIRST_CHARS_PER_TOKEN * num_tokens, THREAD_CHARS)
        while True:
            (encoding,) = self._tokenizer.encode_batch_fast([text[-num_chars:]], add_special_tokens=False)
            if num_chars >= len(text) or len(encoding.ids) > 2 * num_tokens + SPARE_TOKENS:
                break
            num_chars *= 2
        num_added = self._tokenizer.num_special_tokens_to_add(is_pair=False) if add_special_tokens else 0
        encoding.truncate(max(0, num_tokens - num_added), direction="left")
        return tuple(self._tokenizer.post_process(encoding, None, add_special_tokens).ids)

    def _encode_aside(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # the only call of the library that lets other threads run meanwhile
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

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


def load_tokenizer(directory: Path) -> tuple[Tokenizer, TokenizerConfig]:
    """Read tokenizer.json and tokenizer_config.json of a model folder.

    Raises:
        TextFileError: tokenizer.json is missing, or a file is malformed.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise TextFileError(f"{directory} has no tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise TextFileError(f"tokenizer.json cannot be read: {error}") from error
    config = read_tokenizer_config(directory) or TokenizerConfig()
    _apply_config(tokenizer, config)
    return tokenizer, config


def _apply_config(tokenizer: Tokenizer, config: TokenizerConfig) -> None:
    """Give the tokenizer the tokens of tokenizer_config.json that tokenizer.json lacks, as transformers does.

    `add_bos_token` and `add_eos_token` mean nothing beside a tokenizer.json, whose post-processor says it.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    known = set(tokenizer.get_added_tokens_decoder())
    for token_id, token in sorted(config.added_tokens_decoder.items()):
        if token_id not in known:
            tokenizer.add_tokens(
                [
                    AddedToken(
                        token.content,
                        lstrip=token.lstrip,
                        normalized=token.normalized,
                        rstrip=token.rstrip,
                        single_word=token.single_word,
                        special=token.special,
                    )
                ]
            )
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_special_tokens([text for text in config.special_tokens.values() if text not in present])
