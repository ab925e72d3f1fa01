"""Documents of pods, read once: pods of a base say mostly the same, and mostly what they said before.

An entry that is written as one before becomes the same object, on whichever pod. So reading a document costs by what of it is
new, memory by what is different, and passes tell by identity what has changed.
"""

from typing import Final
from weakref import WeakValueDictionary

from pydantic import ValidationError

from lorafleet_contract.admin import ObservedAdapter, PodState

BEGIN: Final = b'"adapters":[{'
END: Final = b"}]"
BETWEEN: Final = b"},{"
MIN_BYTES: Final = 4096
"""A shorter document is read as a whole."""


class PodStates:
    """The entries of all documents that somebody still has."""

    def __init__(self) -> None:
        self._entries: WeakValueDictionary[bytes, ObservedAdapter] = WeakValueDictionary()
        self._last: dict[bytes, ObservedAdapter] = {}
        """Those of the document that was read last: most of the next one, found faster."""

    @property
    def num_entries(self) -> int:
        """Entries that are different from each other."""
        return len(self._entries)

    def read(self, raw: bytes) -> PodState:
        """Return a document.

        Raises:
            ValidationError: it is none.
        """
        if len(raw) >= MIN_BYTES:
            try:
                state = self._read_in_pieces(raw)
            except ValidationError:
                state = None  # written in another way, or wrong: reading the whole tells which
            if state is not None:
                return state
        return PodState.model_validate_json(raw)

    def _read_in_pieces(self, raw: bytes) -> PodState | None:
        """Return a document whose entries are flat objects without spaces between them, as our pods write it; None for another.

        Where what separates entries stands in a string, what is left of it is no JSON: the pieces are refused, and so is
        the document without them.

        Raises:
            ValidationError: a piece or the rest is not what it should be.
        """
        begin = raw.find(BEGIN)
        end = raw.find(END, begin)
        if begin < 0 or end < 0 or raw.find(BEGIN, begin + 1) >= 0:
            return None
        begin += len(BEGIN)
        head = PodState.model_validate_json(raw[: begin - 1] + raw[end + 1 :])
        pieces = raw[begin:end].split(BETWEEN)
        entries = [
            known or self._entry(piece) for known, piece in zip(map(self._last.get, pieces), pieces, strict=True)
        ]
        self._last = dict(zip(pieces, entries, strict=True))
        return head.model_copy(update={"adapters": entries})

    def _entry(self, piece: bytes) -> ObservedAdapter:
        known = self._entries.get(piece)
        if known is None:
            known = ObservedAdapter.model_validate_json(b"{" + piece + b"}")
            self._entries[piece] = known
        return known
