"""What the API server was last heard to have: filled by events, put right by every complete list."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from enum import StrEnum
from typing import Any, Final, TypeVar

from lorafleet_common.kube.client import Listed
from lorafleet_common.paths import Json, version_of
from lorafleet_contract.names import ADAPTER_PLURAL, BASE_MODEL_PLURAL
from lorafleet_operator.decide.kept_names import KeptBase
from lorafleet_operator.decide.views import BaseKey

R = TypeVar("R")
MAX_TOMBSTONES: Final = 10_000
_OF_EACH_WRITE: Final = frozenset({"resourceVersion", "managedFields"})


class Kind(StrEnum):
    """Kinds that are watched, by their plural."""

    BASE = BASE_MODEL_PLURAL
    ADAPTER = ADAPTER_PLURAL
    POD = "pods"


class Store:
    """Bodies of objects by kind and uid.

    An older version never replaces a newer one, and what was deleted does not come back from a list that began before.
    """

    def __init__(self, scopes: Collection[str | None] = (None,)) -> None:
        self._scopes = scopes
        """What is listed one by one: namespaces, or None for all of them."""
        self.kept_bases: dict[BaseKey, KeptBase] = {}
        """What is remembered of bases for the time after them."""
        self._objects: dict[Kind, dict[str, Json]] = {kind: {} for kind in Kind}
        self._made: dict[str, dict[str, tuple[Json, Any]]] = {}
        """What for -> uid -> a body and what was made of it."""
        self._recalled: dict[str, tuple[object, Any]] = {}
        self._tombstones: OrderedDict[str, int] = OrderedDict()
        """Uid -> version of its end."""
        self._num_lists: Counter[tuple[Kind, str | None]] = Counter()
        """Lists that were taken in, by what they were of."""
        self._hidden: set[tuple[Kind, str | None]] = set()
        """What could not be listed the last time."""

    def all(self, kind: Kind) -> list[Json]:
        """Return all objects of a kind."""
        return list(self._objects[kind].values())

    def read(self, body: Json, make: Callable[[Json], R], what: str = "resource") -> R:
        """Return what `make` makes of a body of the store; made once for each version of an object and each `what`."""
        uid, found = body["metadata"]["uid"], self._made.setdefault(what, {})
        known = found.get(uid)
        if known is None or known[0] is not body:
            known = found[uid] = (body, make(body))
        made: R = known[1]
        return made

    def recall(self, what: str, given: object, make: Callable[[], R]) -> R:
        """Return what `make` makes; nothing is made again while all that it is made of is equal to the last time."""
        known = self._recalled.get(what)
        if known is None or known[0] != given:
            known = self._recalled[what] = (given, make())
        made: R = known[1]
        return made

    def put(self, kind: Kind, body: Json) -> bool:
        """Take in a version of an object, which belongs to the store from now on; return whether it is news."""
        uid, version = body["metadata"]["uid"], version_of(body)
        known = self._objects[kind].get(uid)
        if version <= self._tombstones.get(uid, -1) or (known is not None and version_of(known) >= version):
            return False
        self._tombstones.pop(uid, None)
        body["metadata"].pop("managedFields", None)  # half of the bytes, of no use here
        self._objects[kind][uid] = body
        return True

    def put_answer(self, kind: Kind, body: Json) -> bool:
        """Take in the answer to a write of our own; return whether it shows what somebody else has changed.

        Its event will be no news, so this is the only time to notice.
        """
        if not {None, body["metadata"]["namespace"]} & set(self._scopes):
            return False
        known = self._objects[kind].get(body["metadata"]["uid"])
        return self.put(kind, body) and known is not None and _others(known) != _others(body)

    def remove(self, kind: Kind, uid: str, version: int) -> bool:
        """Take in that an object is gone, or no longer of those that are watched; return whether it was known.

        Args:
            kind: what it was.
            uid: which one.
            version: of its end; whatever is newer has come back since.
        """
        known = self._objects[kind].get(uid)
        if known is not None and version_of(known) > version > 0:
            return False
        for made in self._made.values():
            made.pop(uid, None)
        self._tombstones[uid] = max(version, version_of(known) if known is not None else 0)
        self._tombstones.move_to_end(uid)
        while len(self._tombstones) > MAX_TOMBSTONES:
            self._tombstones.popitem(last=False)
        return self._objects[kind].pop(uid, None) is not None

    def replace(self, kind: Kind, listed: Listed, *, known_before: frozenset[str], scope: str | None = None) -> None:
        """Take in the list of a scope.

        Args:
            kind: what was listed.
            listed: all objects there are.
            scope: the namespace that was listed; None for all of them.
            known_before: uids that were known when the list was asked for; only those can have gone since.
        """
        there = {body["metadata"]["uid"] for body in listed.items}
        for uid in known_before - there:
            self.remove(kind, uid, listed.version)
        for body in listed.items:
            self.put(kind, body)
        self._num_lists[kind, scope] += 1
        self._hidden.discard((kind, scope))

    def hide(self, kind: Kind, scope: str) -> None:
        """Take in that a namespace cannot be listed: what is known of it stays."""
        self._hidden.add((kind, scope))

    def is_hidden(self, kind: Kind, namespace: str) -> bool:
        """Whether there may be objects in a namespace that are not known."""
        return (kind, namespace) in self._hidden

    def are_listed(self, kind: Kind, namespaces: Collection[str], *, times: int) -> bool:
        """Whether everything of a kind in these namespaces was listed at least so often; `*` is all that are listed."""
        asked = [scope for scope in self._scopes if scope is None or "*" in namespaces or scope in namespaces]
        return all(self._num_lists[kind, scope] >= times for scope in asked)

    def uids(self, kind: Kind, scope: str | None = None) -> frozenset[str]:
        """Return the uids of a kind, of one namespace or of all."""
        known = self._objects[kind]
        if scope is None:
            return frozenset(known)
        return frozenset(uid for uid, body in known.items() if body["metadata"]["namespace"] == scope)


def _others(body: Json) -> Json:
    """Return what of an object is not status, and does not change with every write."""
    metadata = {name: value for name, value in body["metadata"].items() if name not in _OF_EACH_WRITE}
    return {**{name: value for name, value in body.items() if name != "status"}, "metadata": metadata}
