"""What the API server was last heard to have: filled by events, put right by every complete list."""

from collections import OrderedDict
from enum import StrEnum
from typing import Final

from lorafleet_contract.names import ADAPTER_PLURAL, BASE_MODEL_PLURAL
from lorafleet_operator.paths import Json

MAX_TOMBSTONES: Final = 10_000


class Kind(StrEnum):
    """Kinds that are watched, by their plural."""

    BASE = BASE_MODEL_PLURAL
    ADAPTER = ADAPTER_PLURAL
    POD = "pods"


class Store:
    """Bodies of objects by kind and uid.

    An older version never replaces a newer one, and what was deleted does not come back from a list that began before.
    """

    def __init__(self) -> None:
        self._objects: dict[Kind, dict[str, Json]] = {kind: {} for kind in Kind}
        self._tombstones: OrderedDict[str, None] = OrderedDict()
        self.num_lists: dict[Kind, int] = dict.fromkeys(Kind, 0)
        """Complete lists that were taken in."""

    def all(self, kind: Kind) -> list[Json]:
        """Return all objects of a kind."""
        return list(self._objects[kind].values())

    def put(self, kind: Kind, body: Json) -> bool:
        """Take in a version of an object, which belongs to the store from now on; return whether it is news."""
        uid = body["metadata"]["uid"]
        known = self._objects[kind].get(uid)
        if uid in self._tombstones or (known is not None and version_of(known) >= version_of(body)):
            return False
        body["metadata"].pop("managedFields", None)  # half of the bytes, of no use here
        self._objects[kind][uid] = body
        return True

    def remove(self, kind: Kind, uid: str) -> bool:
        """Take in that an object is gone; return whether it was known."""
        self._tombstones[uid] = None
        self._tombstones.move_to_end(uid)
        while len(self._tombstones) > MAX_TOMBSTONES:
            self._tombstones.popitem(last=False)
        return self._objects[kind].pop(uid, None) is not None

    def replace(self, kind: Kind, bodies: list[Json], *, known_before: frozenset[str]) -> None:
        """Take in a complete list.

        Args:
            kind: what was listed.
            bodies: all objects there are.
            known_before: uids that were known when the list was asked for; only those can have gone since.
        """
        listed = {body["metadata"]["uid"] for body in bodies}
        for uid in known_before - listed:
            self.remove(kind, uid)
        for body in bodies:
            self.put(kind, body)
        self.num_lists[kind] += 1

    def uids(self, kind: Kind) -> frozenset[str]:
        """Return the uids of a kind."""
        return frozenset(self._objects[kind])


def version_of(body: Json) -> int:
    """Return the resourceVersion as the number that it is; 0 when it is none."""
    text = body["metadata"].get("resourceVersion", "")
    return int(text) if text.isdigit() else 0
