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
    is_back: bool = False
    """There is a base of the same namespace and name again: what its predecessor left stays reserved for its time."""

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
    after = {}
    for base in bases:
        key = (base.metadata.namespace, base.metadata.name)
        after[key] = _kept(base, before.get(key), now)
    gone = [
        kept if kept.gone_at is not None and not kept.is_back else _left(kept, now)
        for key, kept in before.items()
        if key not in after
    ]
    gone = sorted((kept for kept in gone if any(kept.names(now))), key=lambda kept: kept.gone_at or now)
    return after | {kept.key: kept for kept in gone[-max(1, MAX_KEPT - len(after)) :]}


def _kept(base: BaseModelResource, known: KeptBase | None, now: datetime) -> KeptBase:
    """Return what is to be remembered of a base that is there."""
    predecessor = known if known is not None and known.gone_at is not None and any(known.names(now)) else None
    has_served = base.status.ready_replicas > 0 or (known is not None and known.served_name == base.served_name)
    own = base.served_name if base.status.served_name and has_served else None
    name = own or (predecessor.served_name if predecessor is not None else None)
    is_new = base.status.observed_generation is None
    return KeptBase(
        namespace=base.metadata.namespace,
        name=base.metadata.name,
        served_name=None if base.metadata.annotations.get(ANNOTATION_RELEASE_NAME) == "true" else name,
        reserved=predecessor.reserved if predecessor is not None and is_new else base.status.reserved_names,
        gone_at=predecessor.gone_at if predecessor is not None else None,
        is_back=predecessor is not None,
    )


def _left(kept: KeptBase, now: datetime) -> KeptBase:
    """Return what a base leaves that has just gone."""
    return kept.model_copy(update={"gone_at": now, "is_back": False})


def reserved_by(kept: Kept, alive: Collection[BaseKey], now: datetime) -> Iterator[ReservedName]:
    """Yield the names that bases which are gone leave reserved, whether or not one of the same name has come since."""
    for key, base in kept.items():
        if key not in alive or base.gone_at is not None:
            yield from base.names(now)
