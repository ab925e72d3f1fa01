"""What the adapters of a pod look like from outside: to the operator, to gateways, in metrics. What changed since when."""

from collections.abc import Mapping

from lorafleet_contract.admin import ObservedAdapter, Tier
from lorafleet_contract.lorax import AD_HOC
from lorafleet_contract.names import REVISION_MARK
from lorafleet_contract.routes import RouteAdapter
from lorafleet_inference.adapters.changes import Generation
from lorafleet_inference.adapters.journal import Difference, Journal
from lorafleet_inference.adapters.tracked import Tracked
from lorafleet_inference.engine.messages import AdapterKey
from lorafleet_inference.metrics import InMemory


class Shown:
    """The revisions that `tracked` has now, as others may see them."""

    def __init__(self, tracked: Mapping[AdapterKey, Tracked], changes: Generation) -> None:
        self._tracked = tracked
        self._states, self._routes = Journal(changes), Journal(changes)

    def observed(self, difference: Difference | None = None) -> list[ObservedAdapter]:
        """Return every revision as the admin API shows it, or those that a difference tells."""
        return [one.observed() for one in self._all() if difference is None or one.key in difference.changed]

    def states_since(self, generation: int | None) -> Difference | None:
        """Return what has become of `observed` since a generation; None: that is not known, or nobody asks.

        To be called before `changes.number` is read for a document: the number may grow.
        """
        self._states.look({one.key: one.standing for one in self._all()})
        return None if generation is None else self._states.since(generation)

    def routes_since(self, generation: int | None) -> Difference | None:
        """As `states_since`, of `routes`."""
        self._routes.look({one.key: one.standing for one in self._all() if one.is_answering})
        return None if generation is None else self._routes.since(generation)

    def routes(self, difference: Difference | None = None) -> list[RouteAdapter]:
        """Return the revisions that can be answered, or those that a difference tells."""
        return [
            one.route()
            for one in self._all()
            if one.is_answering and (difference is None or one.key in difference.changed)
        ]

    def in_memory(self) -> list[InMemory]:
        """Return the revisions that requests can be answered with out of device or host memory."""
        return [
            InMemory(
                model=one.entry.name if one.entry.stable else f"{one.entry.name}{REVISION_MARK}{one.key.revision}",
                is_on_device=one.tier is Tier.DEVICE,
                is_pinned=one.entry.pinned,
                rank=one.entry.artifact.facts.rank,
            )
            for one in self._all()
            if one.is_answering and one.tier in (Tier.DEVICE, Tier.HOST)
        ]

    def _all(self) -> list[Tracked]:
        """What requests have named is nobody else's to know."""
        return [tracked for tracked in self._tracked.values() if tracked.entry.name != AD_HOC]
