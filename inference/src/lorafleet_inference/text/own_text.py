"""Texts of adapters whose tokenizer is not the base's: tokenised by a process of their own, detokenised from a table."""

import asyncio
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

import msgspec
from tokenizers import Tokenizer

from lorafleet_contract.reasons import Reason
from lorafleet_inference.errors import AdapterError, ContextLengthExceeded, InvalidValue
from lorafleet_inference.text.detokenizer import Detokenizer
from lorafleet_inference.text.files import TextFileError
from lorafleet_inference.text.own_tokenizer import OwnTokenizer, has_own, key_of
from lorafleet_inference.text.pieces import Pieces
from lorafleet_inference.text.table import TablePieces
from lorafleet_inference.text.tokenizer_process import Encode, Place
from lorafleet_inference.text.tokenizer_workers import TokenizerFailure, TokenizerWorkers

MAX_TABLES = 32
"""Tables of tokens that are kept; each has some megabytes."""
MAX_DIGESTS = 4096


class Codec(Protocol):
    """Texts to tokens and back."""

    @property
    def pieces(self) -> Pieces:
        """What each token stands for."""

    async def encode(
        self, text: str, *, add_special_tokens: bool, max_tokens: int, field: str, keep_last: int | None = None
    ) -> tuple[int, ...]:
        """As `Text.encode`."""

    def detokenizer(self, *, strip_leading: bool, skip_special: bool = True, space_special: bool = True) -> Detokenizer:
        """As `Text.detokenizer`."""

    def special_id(self, text: str) -> int | None:
        """Return the id of a special token."""


class OwnText:
    """The codec of one adapter."""

    def __init__(self, own: OwnTokenizer, pieces: TablePieces, place: Place, workers: TokenizerWorkers) -> None:
        self._key = own.key
        self._place = place
        self._workers = workers
        self.pieces = pieces

    async def encode(
        self, text: str, *, add_special_tokens: bool, max_tokens: int, field: str, keep_last: int | None = None
    ) -> tuple[int, ...]:
        """As `Text.encode`.

        Raises:
            ContextLengthExceeded: it has more than `max_tokens` tokens, found out early.
            InvalidValue: the tokenizer fails on it, or got out of hand.
        """
        keep_last = None if keep_last is None or keep_last >= max_tokens else keep_last
        try:
            token_ids = await self._workers.encode(
                Encode(self._key, self._place, text, add_special_tokens, max_tokens, keep_last)
            )
        except TokenizerFailure as failure:
            raise InvalidValue(f"the tokenizer of the adapter failed: {failure}", param=field) from failure
        if token_ids is None:
            raise ContextLengthExceeded(
                f"this model's maximum context length is {max_tokens} tokens; the prompt, of {len(text)} characters, "
                f"has more",
                param=field,
            )
        return token_ids

    def detokenizer(self, *, strip_leading: bool, skip_special: bool = True, space_special: bool = True) -> Detokenizer:
        """As `Text.detokenizer`."""
        return Detokenizer(
            self.pieces, strip_leading=strip_leading, skip_special=skip_special, space_special=space_special
        )

    def special_id(self, text: str) -> int | None:
        """Return the id of an added token."""
        return self.pieces.named.get(text)


class OwnTexts:
    """The tokenizers of adapters, by the digest of their content."""

    def __init__(self, base_directory: Path, base: Tokenizer) -> None:
        self._base_directory = base_directory
        self._base = base
        self._base_key = key_of(base)
        self.workers = TokenizerWorkers()
        self._found: OrderedDict[str, OwnTokenizer | None] = OrderedDict()
        """Without their tables; None for an adapter that uses the base's."""
        self._tables: OrderedDict[str, TablePieces] = OrderedDict()
        self._finding: dict[str, asyncio.Task[OwnText | None]] = {}

    def read(self, directory: Path, num_rows: int) -> OwnTokenizer | None:
        """Return the tokenizer of an adapter's folder, None where it is the base's; blocks.

        Raises:
            TextFileError: a file is malformed.
            TokenizerFailure: the tokenizer cannot be read.
        """
        if not has_own(directory, self._base_directory, self._base):
            return None
        own = self.workers.describe(self._place(directory), num_rows)
        return None if own.key == self._base_key else own

    def judge(self, directory: Path, num_rows: int) -> OwnTokenizer | None:
        """Return the tokenizer of an adapter whose embedding has `num_rows` rows, None where it is the base's; blocks.

        Raises:
            AdapterError: ARTIFACT_INVALID it cannot be used; UNSUPPORTED_ADAPTER it is of a kind that is not served;
                BASE_MODEL_MISMATCH it has tokens beyond the embedding.
        """
        try:
            own = self.read(directory, num_rows)
        except (TextFileError, TokenizerFailure) as error:
            raise AdapterError(Reason.ARTIFACT_INVALID, f"the adapter's tokenizer cannot be used: {error}") from error
        if own is None:
            return None
        if own.largest_id >= num_rows:
            raise AdapterError(
                Reason.BASE_MODEL_MISMATCH,
                f"the adapter's tokenizer has {own.num_tokens} tokens with ids up to {own.largest_id} "
                f"({own.largest_token!r}), and the embedding has {num_rows} rows; an adapter with more tokens saves "
                "embed_tokens and lm_head with a row for each",
            )
        if not own.is_exact:
            raise AdapterError(
                Reason.UNSUPPORTED_ADAPTER,
                "the adapter's tokenizer is not the base's, and its decoder is neither byte-level nor with byte fallback",
            )
        return own

    async def find(self, digest: str, directory: Path, num_rows: int) -> OwnText | None:
        """Return the codec of an adapter, None where it is the base's.

        Raises:
            InvalidValue: its tokenizer cannot be used.
        """
        own = self._found.get(digest)
        if digest in self._found and (own is None or own.key in self._tables):
            self._found.move_to_end(digest)
            return None if own is None else self._codec(own, directory)
        task = self._finding.get(digest)
        if task is None:
            task = self._finding[digest] = asyncio.create_task(self._find(digest, directory, num_rows))
            task.add_done_callback(lambda ended: self._ended(digest, ended))
        return await asyncio.shield(task)

    async def _find(self, digest: str, directory: Path, num_rows: int) -> OwnText | None:
        try:
            own = await asyncio.to_thread(self.read, directory, num_rows)
        except (TextFileError, TokenizerFailure) as error:
            raise InvalidValue(f"the tokenizer of the adapter cannot be used: {error}", param="model") from error
        if own is not None:
            if own.table is None:
                raise InvalidValue("the tokenizer of the adapter does not fit its embedding", param="model")
            self._tables.setdefault(own.key, TablePieces(own.table))
            self._tables.move_to_end(own.key)
            own = msgspec.structs.replace(own, table=None)
        self._found[digest] = own
        for kept, most in ((self._found, MAX_DIGESTS), (self._tables, MAX_TABLES)):
            while len(kept) > most:
                kept.popitem(last=False)
        return None if own is None else self._codec(own, directory)

    def _ended(self, digest: str, task: "asyncio.Task[OwnText | None]") -> None:
        del self._finding[digest]
        if not task.cancelled():
            task.exception()  # known to whoever still waits

    def _codec(self, own: OwnTokenizer, directory: Path) -> OwnText:
        self._tables.move_to_end(own.key)
        return OwnText(own, self._tables[own.key], self._place(directory), self.workers)

    def _place(self, directory: Path) -> Place:
        return Place(str(directory), str(self._base_directory))

    def close(self) -> None:
        """End the processes that tokenise."""
        self.workers.close()
