"""The pieces of an adapter's own tokenizer, as a table: nothing of a stranger's runs where texts are made of it."""

from array import array
from collections.abc import Sequence

import msgspec


class TableOfTokens(msgspec.Struct, frozen=True, array_like=True):
    """Every token of an exact tokenizer; some megabytes."""

    shown: bytes
    """The bytes of all tokens, by id, one after the other."""
    ends: bytes
    """Where those of each id end, as native uint32."""
    special: list[int]
    num_leading_spaces: int
    named: dict[str, int]
    """Ids of added tokens by their texts."""


class TablePieces:
    """As `PieceTable`, of a table."""

    exact = True

    def __init__(self, table: TableOfTokens) -> None:
        self._shown = table.shown
        self._ends = array("I")
        self._ends.frombytes(table.ends)
        self._special = frozenset(table.special)
        self.num_leading_spaces = table.num_leading_spaces
        self.named = table.named

    def piece(self, token_id: int) -> bytes:
        """Return what a token adds to a text: nothing for special tokens and unknown ids."""
        return b"" if token_id in self._special else self.shown(token_id)

    def shown(self, token_id: int) -> bytes:
        """Return the bytes of a token as log-probabilities show them: special tokens in words."""
        if not 0 <= token_id < len(self._ends):
            return b""
        return self._shown[self._ends[token_id - 1] if token_id else 0 : self._ends[token_id]]

    def is_special(self, token_id: int) -> bool:
        """Whether a token never appears in texts."""
        return token_id in self._special

    def decode(self, token_ids: Sequence[int], *, skip_special: bool) -> str:
        """Return the text of tokens."""
        piece = self.piece if skip_special else self.shown
        return b"".join(map(piece, token_ids)).decode(errors="replace")
