"""Token ids to text, a few at a time, never half a character."""

import codecs
from collections.abc import Sequence

from lorafleet_inference.text.pieces import Pieces

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MAX_HELD_TOKENS = 8
"""More tokens than any character needs: text that still ends broken after these is broken for good."""


class Detokenizer:
    """The text of one answer as it grows. The pieces that `push` and `finish` return, joined, are the whole text.

    Bytes that are no UTF-8 become U+FFFD. Each token costs constant time.
    """

    def __init__(
        self, pieces: Pieces, *, strip_leading: bool, skip_special: bool = True, space_special: bool = True
    ) -> None:
        """`skip_special` leaves out special tokens; without `space_special` nothing stands between two that follow
        each other, where the tokenizer's decoder would put a space.
        """
        self._piece = pieces.piece if skip_special else pieces.shown
        self._num_to_strip = pieces.num_leading_spaces if strip_leading else 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._window = _Window(pieces, skip_special, space_special) if not pieces.exact else None

    def push(self, token_ids: Sequence[int]) -> str:
        """Return the text that these tokens complete; what may still change is kept back."""
        if self._window is not None:
            return "".join(self._window.push(token_id) for token_id in token_ids)
        return self._strip(self._decoder.decode(b"".join(map(self._piece, token_ids))))

    def finish(self) -> str:
        """Return what was kept back: no more tokens come."""
        if self._window is not None:
            return self._window.finish()
        return self._strip(self._decoder.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        while self._num_to_strip and text:
            if not text.startswith(" "):
                self._num_to_strip = 0
            else:
                self._num_to_strip -= 1
                text = text[1:]
        return text


class _Window:
    """For decoders whose output depends on neighbours: decodes the last tokens again together with the new one."""

    def __init__(self, pieces: Pieces, skip_special: bool, space_special: bool) -> None:
        self._pieces = pieces
        self._skip_special = skip_special
        self._space_special = space_special or skip_special
        self._ids: list[int] = []
        self._num_shown = 0
        """Of `_ids`, how many are already in the text; they are only there as context."""

    def push(self, token_id: int) -> str:
        if self._pieces.is_special(token_id):
            if self._skip_special:
                return ""
            if not self._space_special and self._ids and self._pieces.is_special(self._ids[-1]):
                text = self._take(final=True) + self._pieces.shown(token_id).decode()
                self._ids, self._num_shown = [token_id], 1
                return text
        self._ids.append(token_id)
        return self._take(final=len(self._ids) - self._num_shown >= MAX_HELD_TOKENS)

    def finish(self) -> str:
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        shown = self._decode(self._ids[: self._num_shown])
        whole = self._decode(self._ids)
        if not final and (whole.endswith(REPLACEMENT) or len(whole) <= len(shown)):
            return ""
        self._ids = self._ids[self._num_shown :]
        self._num_shown = len(self._ids)
        return whole[len(shown) :]

    def _decode(self, token_ids: list[int]) -> str:
        return self._pieces.decode(token_ids, skip_special=self._skip_special)
