"""Which served names stay reserved for the namespace of an adapter that is deleted. Pure."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from lorafleet_contract.names import ANNOTATION_RELEASE_NAME
from lorafleet_contract.resources import BaseModelResource, ReservedName
from lorafleet_operator.decide.intent import Intent

RESERVED: Final = timedelta(hours=24)
"""A name that served is not handed to another namespace for this long, so that recreating an adapter does not lose it."""
MAX_RESERVED: Final = 256


def reservations_of(base: BaseModelResource, intents: Iterable[Intent], now: datetime) -> list[ReservedName]:
    """Return the reservations that a base's status is to hold, the latest first where there are too many."""
    kept = {entry.name: entry for entry in base.status.reserved_names if entry.until > now}
    for intent in intents:
        meta = intent.adapter.metadata
        has_served = intent.published is not None or bool(intent.adapter.status.history)
        if meta.deletion_timestamp is None or not intent.owns_name or not has_served:
            continue
        if meta.annotations.get(ANNOTATION_RELEASE_NAME) == "true":
            kept.pop(intent.name, None)
        elif (until := meta.deletion_timestamp + RESERVED) > now:
            kept[intent.name] = ReservedName(name=intent.name, namespace=meta.namespace, until=until)
    latest = sorted(kept.values(), key=lambda entry: (entry.until, entry.name), reverse=True)[:MAX_RESERVED]
    return sorted(latest, key=lambda entry: entry.name)
