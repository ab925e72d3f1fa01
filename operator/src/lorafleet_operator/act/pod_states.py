"""Documents of pods, read once: pods of a base say mostly the same, and mostly what they said before.

An entry that is written as one before becomes the same object, on whichever pod, in a whole document or in a difference. So
reading costs by what is new, memory by what is different, and passes tell by identity what has changed.
"""

from collections.abc import Sequence
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from pydantic import ValidationError

from lorafleet_contract.admin import ObservedAdapter, PodDifference, PodState
from lorafleet_operator.decide.entry_index import Key

D = TypeVar("D", bound=PodState)

BEGIN: Final = b'"adapters":[{'
END: Final = b"}]"
BETWEEN: Final = b"},{"
SINCE: Final = b'"since":'
"""A document without it is no difference; with it, it may be one."""
MADE: Final = "_made_of_differences"
"""What a document that was made of differences carries for the next one, as a cached property would be: its list of
entries, and the same entries by name and revision."""
MIN_BYTES: Final = 4096
"""A shorter document is read as a whole, unless it is a difference: what it tells is mostly what others tell as well."""


class PodStates:
    """The entries of all documents that somebody still has."""

    def __init__(self) -> None:
        self._entries: WeakValueDictionary[bytes, ObservedAdapter] = WeakValueDictionary()
        self._last: dict[bytes, ObservedAdapter] = {}
        """Those of the whole document that was read last: most of the next one, found faster."""

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
                found = self._read_in_pieces(PodState, raw)
            except ValidationError:
                found = None  # written in another way, or wrong: reading the whole tells which
            if found is not None:
                state, self._last = found
                return state
        return PodState.model_validate_json(raw)

    def read_news(self, raw: bytes, known: PodState) -> PodState:
        """Return a whole document from what may be a difference to the one that is known, or a whole one.

        Raises:
            ValidationError: it is neither.
            ValueError: it is a difference to another one.
        """
        if SINCE not in raw:
            return self.read(raw)
        try:
            found = self._read_in_pieces(PodDifference, raw)
            difference = found[0] if found is not None else PodDifference.model_validate_json(raw)
        except ValidationError:
            return self.read(raw)
        entries = _entries_of(known)
        state = difference.applied_to_entries(known, entries)
        state.__dict__[MADE] = (state.adapters, entries)
        return state

    def _read_in_pieces(self, model: type[D], raw: bytes) -> tuple[D, dict[bytes, ObservedAdapter]] | None:
        """Return a document whose entries are flat objects without spaces between them, as our pods write it, and how each
        entry is written; None for another.

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
        head = model.model_validate_json(raw[: begin - 1] + raw[end + 1 :])
        pieces = raw[begin:end].split(BETWEEN)
        entries = [
            known or self._entry(piece) for known, piece in zip(map(self._last.get, pieces), pieces, strict=True)
        ]
        return head.model_copy(update={"adapters": entries}), dict(zip(pieces, entries, strict=True))

    def _entry(self, piece: bytes) -> ObservedAdapter:
        known = self._entries.get(piece)
        if known is None:
            known = ObservedAdapter.model_validate_json(b"{" + piece + b"}")
            self._entries[piece] = known
        return known


def _entries_of(state: PodState) -> dict[Key, ObservedAdapter]:
    """Return the entries of a document by name and revision, to be changed."""
    made: tuple[Sequence[ObservedAdapter], dict[Key, ObservedAdapter]] | None = state.__dict__.get(MADE)
    if made is not None and made[0] is state.adapters:  # not where the document is a copy with others
        return dict(made[1])
    return {(entry.name, entry.revision): entry for entry in state.adapters}
