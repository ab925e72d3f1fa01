"""The base model's tokenizer as the API process uses it."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from lorafleet_inference.text.chat import ChatTemplate, ChatTemplates, read_template_source
from lorafleet_inference.text.detokenizer import Detokenizer
from lorafleet_inference.text.files import TextFileError, TokenizerConfig, read_tokenizer_config
from lorafleet_inference.text.pieces import PieceTable

THREAD_CHARS = 8192
"""Longer texts are tokenised in a thread, so that one of a hundred pages does not hold up everybody's streams."""


class Text:
    """Everything between the text of a request and token ids: tokenizer, chat templates, detokeniser."""

    def __init__(self, tokenizer: Tokenizer, templates: ChatTemplates, special_tokens: Mapping[str, str]) -> None:
        self._tokenizer = tokenizer
        self.templates = templates
        self.special_tokens = special_tokens
        self.pieces = PieceTable(tokenizer)

    @classmethod
    def load(cls, directory: Path) -> "Text":
        """Read tokenizer.json, tokenizer_config.json and the chat template of a model folder.

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
        special_tokens = config.special_tokens
        source = read_template_source(directory)
        base = None if source is None else ChatTemplate(source, special_tokens)
        return cls(tokenizer, ChatTemplates(base, special_tokens), special_tokens)

    async def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Return the token ids of a text; `add_special_tokens` adds bos and eos where the tokenizer does."""
        if len(text) > THREAD_CHARS:
            return await asyncio.to_thread(self.encode_now, text, add_special_tokens=add_special_tokens)
        return self.encode_now(text, add_special_tokens=add_special_tokens)

    def encode_now(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """As `encode`, in this thread."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def detokenizer(self, *, strip_leading: bool) -> Detokenizer:
        """Return a fresh incremental detokeniser.

        `strip_leading`: the text stands by itself, so a tokenizer that marks the start of a text with a space loses
        that space; without it the text continues a prompt and keeps it.
        """
        return Detokenizer(self.pieces, strip_leading=strip_leading)


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
