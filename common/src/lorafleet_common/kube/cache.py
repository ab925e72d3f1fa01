"""Objects of one kind as the API server was last heard to have them."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from lorafleet_common.paths import Json, version_of

logger = logging.getLogger(__name__)


class Unreadable(ValueError):
    """An object is there and cannot be read."""

    def __init__(self, message: str, *, fields: tuple[str, ...] = (), hints: frozenset[str] = frozenset()) -> None:
        """`fields`: what of it cannot be read, dotted; `hints`: names by which clients may ask for it."""
        super().__init__(message)
        self.fields = fields
        self.hints = hints


class HasUid(Protocol):
    """A view knows its object's uid."""

    @property
    def uid(self) -> str:
        """metadata.uid."""


V = TypeVar("V", bound=HasUid)
Changed = Callable[[V | None, V | None], None]
"""Told (old, new) after each change; None: it was not there, it is gone."""
Salvage = Callable[[Json, V | None], V | None]
"""Of an object that is unreadable, and its last view: what goes on; None: nothing of it."""


@dataclass(frozen=True, slots=True)
class Unread(Generic[V]):
    """An object that is there and cannot be read."""

    where: str
    """`namespace/name`."""
    error: Unreadable
    view: V | None
    """What goes on of it: its last view, or what could be salvaged; None: nothing."""


class Cache(Generic[V]):
    """Views by uid. An older version never replaces a newer one, and a complete list removes what it does not have.

    Of an object that becomes `Unreadable` the last view stays until it is to be deleted, or what `salvage` makes of both: another
    version of us wrote it, and what it stands for goes on.

    A scope is what one list covers: a namespace, or "" for all of them.
    """

    def __init__(
        self, view: Callable[[Json], V | None], changed: Changed[V], salvage: Salvage[V] = lambda _, last: last
    ) -> None:
        self._view = view
        self._changed = changed
        self._salvage = salvage
        self._unread: dict[str, Unread[V]] = {}
        self._entries: dict[str, tuple[int, str, V | None]] = {}
        self._seen: dict[str, int] = {}

    @property
    def unread(self) -> list[Unread[V]]:
        """The objects that are there and cannot be read as they are now, in the order of their namespaces and names."""
        return sorted(self._unread.values(), key=lambda one: one.where)

    def put(self, body: Json, scope: str) -> None:
        """Take in an event of a watch."""
        self.advance(version_of(body), scope)
        self._put(body)

    def put_found(self, body: Json, scope: str) -> None:
        """Take in an object that was looked up beside the watch: only if the watch has yet to tell of it.

        What the watch has passed and the cache does not have was deleted; its DELETED will not come again.
        """
        if version_of(body) > self._seen.get(scope, 0) or body["metadata"]["uid"] in self._entries:
            self._put(body)

    def remove(self, body: Json, scope: str) -> None:
        """Take in that an object is gone."""
        self.advance(version_of(body), scope)
        self._drop(body["metadata"]["uid"])

    def replace(self, bodies: Iterable[Json], version: int, scope: str) -> None:
        """Take in a complete list as of `version`; what is newer than the list is not judged by it."""
        self.advance(version, scope)
        listed = set()
        for body in bodies:
            listed.add(body["metadata"]["uid"])
            self._put(body)
        gone = [
            uid
            for uid, (known, namespace, _) in self._entries.items()
            if uid not in listed and known <= version and scope in ("", namespace)
        ]
        for uid in gone:
            self._drop(uid)

    def advance(self, version: int, scope: str) -> None:
        """Take in that the watch of a scope has come this far."""
        self._seen[scope] = max(version, self._seen.get(scope, 0))

    def _put(self, body: Json) -> None:
        metadata = body["metadata"]
        uid, version = metadata["uid"], version_of(body)
        known = self._entries.get(uid)
        if known is not None and known[0] >= version > 0:
            return
        old = known[2] if known is not None else None
        self._unread.pop(uid, None)
        try:
            new = self._view(body)
        except Unreadable as error:
            new = None if "deletionTimestamp" in metadata else self._salvage(body, old)
            ending = "it is passed over" if new is None else "it goes on with what is known of it"
            logger.warning("cannot read %s; %s", error, ending)
            where = f"{metadata.get('namespace', '')}/{metadata['name']}"
            self._unread[uid] = Unread(where, error, new)
        self._entries[uid] = (version, metadata.get("namespace", ""), new)
        if old is not new:
            self._changed(old, new)

    def _drop(self, uid: str) -> None:
        self._unread.pop(uid, None)
        known = self._entries.pop(uid, None)
        if known is not None and known[2] is not None:
            self._changed(known[2], None)
