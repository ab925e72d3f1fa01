"""Which served names stay reserved for the namespace of an adapter that is deleted. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Final

from lorafleet_contract.names import ADAPTER_KIND, ANNOTATION_RELEASE_NAME
from lorafleet_contract.resources import BaseModelResource, ObjectMeta, ReservedName
from lorafleet_operator.decide.intent import Intent
from lorafleet_operator.decide.views import BrokenResource, Claim

RESERVED: Final = timedelta(hours=24)
"""A name that served is not handed to another namespace for this long, so that recreating an adapter does not lose it."""
MAX_RESERVED: Final = 256


Served = tuple[str, ObjectMeta]
"""A served name, and whose it is that has served under it and is being deleted."""


def reservations_of(
    base: BaseModelResource, intents: Iterable[Intent], now: datetime, *, unread: Iterable[Served] = ()
) -> list[ReservedName]:
    """Return the reservations that a base's status is to hold, the latest first where there are too many.

    Args:
        base: with those that its status has.
        intents: its adapters.
        now: the time.
        unread: of its adapters that cannot be read, see `served_unread`.
    """
    kept = {entry.name: entry for entry in base.status.reserved_names if entry.until > now}
    for name, meta in (*_served(intents), *unread):
        assert meta.deletion_timestamp is not None
        if meta.annotations.get(ANNOTATION_RELEASE_NAME) == "true":
            kept.pop(name, None)
        elif (until := meta.deletion_timestamp + RESERVED) > now:
            kept[name] = ReservedName(name=name, namespace=meta.namespace, until=until)
    latest = sorted(kept.values(), key=lambda entry: (entry.until, entry.name), reverse=True)[:MAX_RESERVED]
    return sorted(latest, key=lambda entry: entry.name)


def _served(intents: Iterable[Intent]) -> Iterator[Served]:
    for intent in intents:
        has_served = intent.published is not None or bool(intent.adapter.status.history)
        if intent.is_deleted and intent.owns_name and has_served:
            yield intent.name, intent.adapter.metadata


def served_unread(broken: Iterable[BrokenResource], claims: Mapping[str, Claim]) -> Iterator[Served]:
    """Yield the adapters that are being deleted and have served, of those that cannot be read: their names are reserved as well."""
    for one in broken:
        if one.kind != ADAPTER_KIND or one.meta.deletion_timestamp is None:
            continue
        status = one.body.get("status") or {}
        name = str((one.body.get("spec") or {}).get("servedName") or one.meta.name)
        claim = claims.get(name)
        if (status.get("stableRevision") or status.get("history")) and (claim is None or claim.uid == one.meta.uid):
            yield name, one.meta


def may_go_unread(
    one: BrokenResource, base: BaseModelResource | None, claims: Mapping[str, Claim], now: datetime
) -> bool:
    """Whether a deleted adapter that cannot be read may go: where there is a base, its status has the reservation."""
    if base is None:
        return True
    wanted = reservations_of(base, (), now, unread=served_unread([one], claims))
    return all(entry in base.status.reserved_names for entry in wanted)
