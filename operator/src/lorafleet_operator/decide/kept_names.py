"""Which served names stay reserved after a base model is deleted: its own, and those of its deleted adapters. Pure."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Final

from lorafleet_contract.base import Observed
from lorafleet_contract.names import ANNOTATION_RELEASE_NAME
from lorafleet_contract.resources import BaseModelResource, ReservedName
from lorafleet_operator.decide.names import RESERVED
from lorafleet_operator.decide.views import BaseKey

MAX_KEPT: Final = 2000
"""Bases that are remembered; those that have been gone for the longest are forgotten first."""


class KeptBase(Observed):
    """What is remembered of a base for the time after it."""

    namespace: str
    name: str
    served_name: str | None = None
    """None: it has not served, or lets the name go."""
    reserved: list[ReservedName] = []
    """As its status has them."""
    gone_at: datetime | None = None

    @property
    def key(self) -> BaseKey:
        """Of the base."""
        return (self.namespace, self.name)

    def names(self, now: datetime) -> Iterator[ReservedName]:
        """Yield what is reserved when the base is gone."""
        yield from (entry for entry in self.reserved if entry.until > now)
        until = (self.gone_at or now) + RESERVED
        if self.served_name is not None and until > now:
            yield ReservedName(name=self.served_name, namespace=self.namespace, until=until)


Kept = Mapping[BaseKey, KeptBase]


def kept_after(before: Kept, bases: Iterable[BaseModelResource], now: datetime) -> dict[BaseKey, KeptBase]:
    """Return what is to be remembered from now on, given the bases that there are."""
    after: dict[BaseKey, KeptBase] = {}
    for base in bases:
        key = (base.metadata.namespace, base.metadata.name)
        known = before.get(key)
        has_served = base.status.ready_replicas > 0 or (known is not None and known.served_name == base.served_name)
        lets_go = base.metadata.annotations.get(ANNOTATION_RELEASE_NAME) == "true"
        after[key] = KeptBase(
            namespace=key[0],
            name=key[1],
            served_name=base.served_name if base.status.served_name and has_served and not lets_go else None,
            reserved=base.status.reserved_names,
        )
    gone = [
        kept.model_copy(update={"gone_at": kept.gone_at or now}) for key, kept in before.items() if key not in after
    ]
    gone = sorted((kept for kept in gone if any(kept.names(now))), key=lambda kept: kept.gone_at or now)
    return after | {kept.key: kept for kept in gone[-max(1, MAX_KEPT - len(after)) :]}


def reserved_by(kept: Kept, alive: Collection[BaseKey], now: datetime) -> Iterator[ReservedName]:
    """Yield the names that bases which are gone leave reserved; one that has come back says itself what is."""
    for key, base in kept.items():
        if key not in alive:
            yield from base.names(now)
