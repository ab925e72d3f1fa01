"""What each token adds to a text, in bytes.

Byte-level and byte-fallback tokenizers, that is all that large language models use today, give every token fixed bytes,
whatever stands before it. For the others (`exact` is False) only the whole decoder of the tokenizer knows.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer

SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
_FALLBACK = re.compile(r"^<0x([0-9A-F]{2})>$")


def _byte_alphabet() -> dict[str, int]:
    """Return the printable characters with which byte-level vocabularies write the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()


class Pieces(Protocol):
    """Bytes of every token of one tokenizer."""

    @property
    def exact(self) -> bool:
        """Whether `piece` is all there is to decoding."""

    @property
    def num_leading_spaces(self) -> int:
        """Spaces that the decoder strips from the start of a text."""

    def piece(self, token_id: int) -> bytes:
        """Return what a token adds to a text: nothing for special tokens and unknown ids."""

    def shown(self, token_id: int) -> bytes:
        """Return the bytes of a token as log-probabilities show them: special tokens in words."""

    def is_special(self, token_id: int) -> bool:
        """Whether a token never appears in texts."""

    def decode(self, token_ids: Sequence[int], *, skip_special: bool) -> str:
        """Return the text of tokens."""


class PieceTable:
    """Bytes of every token of one tokenizer, computed once a token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._special = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        kinds = _decoder_kinds(tokenizer)
        self._byte_level = kinds == ["ByteLevel"]
        self._fallback = kinds[:2] == ["Replace", "ByteFallback"] and set(kinds[2:]) <= {"Fuse", "Strip"}
        self.exact = self._byte_level or self._fallback
        """Whether `piece` is all there is to decoding."""
        self.num_leading_spaces = _num_stripped(tokenizer) if self._fallback else 0
        """Spaces that the decoder strips from the start of a text."""
        self._cache: dict[int, bytes] = {}

    def piece(self, token_id: int) -> bytes:
        """Return what a token adds to a text: nothing for special tokens and unknown ids."""
        return b"" if token_id in self._special else self.shown(token_id)

    def shown(self, token_id: int) -> bytes:
        """Return the bytes of a token as log-probabilities show them: special tokens in words."""
        cached = self._cache.get(token_id)
        if cached is None:
            cached = self._cache[token_id] = self._spelled(token_id)
        return cached

    def _spelled(self, token_id: int) -> bytes:
        token = self.tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._special:
            return token.encode()
        if self._byte_level:
            data = [BYTE_ALPHABET.get(char) for char in token]
            return token.encode() if None in data else bytes(byte for byte in data if byte is not None)
        if self._fallback:
            byte = _FALLBACK.match(token)
            return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE_MARK, " ").encode()
        return self.tokenizer.decode([token_id], skip_special_tokens=False).encode()

    def max_bytes(self) -> int | None:
        """Return the size of the longest piece; None where a token may stand for any length of text.

        That is so where the decoder is not exact, where a normaliser shortens texts, and where added tokens take the
        spaces beside them.
        """
        takes_spaces = any(one.lstrip or one.rstrip for one in self.tokenizer.get_added_tokens_decoder().values())
        if not self.exact or takes_spaces or not _keeps_length(self.tokenizer):
            return None
        names = self.tokenizer.get_vocab(with_added_tokens=True)
        return max((len(name if self._byte_level else name.encode()) for name in names), default=None)

    def is_special(self, token_id: int) -> bool:
        """Whether a token never appears in texts."""
        return token_id in self._special

    def decode(self, token_ids: Sequence[int], *, skip_special: bool) -> str:
        """Return the text of tokens."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special)


def _decoder(tokenizer: Tokenizer) -> dict[str, Any]:
    decoder: dict[str, Any] = json.loads(tokenizer.to_str())["decoder"] or {}
    return decoder


def _decoder_parts(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    decoder = _decoder(tokenizer)
    return decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]


def _decoder_kinds(tokenizer: Tokenizer) -> list[str]:
    """Return the steps of the decoder; a Replace counts as one only if it writes spaces for space marks."""
    kinds = []
    for part in _decoder_parts(tokenizer):
        kind = str(part.get("type"))
        if kind == "Replace" and (part.get("pattern"), part.get("content")) != ({"String": SPACE_MARK}, " "):
            kind = "OtherReplace"
        if kind == "Strip" and (part.get("content") != " " or part.get("stop")):
            kind = "OtherStrip"
        kinds.append(kind)
    return kinds


def _keeps_length(tokenizer: Tokenizer) -> bool:
    """Whether the normaliser at most adds to a text."""
    normalizer = json.loads(tokenizer.to_str())["normalizer"]
    parts = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    return all(
        part["type"] == "Prepend"
        or (part["type"] == "Replace" and (part["pattern"], part["content"]) == ({"String": " "}, SPACE_MARK))
        for part in parts
    )


def _num_stripped(tokenizer: Tokenizer) -> int:
    return sum(int(part["start"]) for part in _decoder_parts(tokenizer) if part.get("type") == "Strip")
