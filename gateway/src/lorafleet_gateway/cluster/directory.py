"""Names, bases and endpoints of the cluster, kept current by caches; answers what a name means."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from lorafleet_common.kube.cache import Cache, Unread
from lorafleet_contract.names import ADAPTER_KIND, BASE_MODEL_KIND, MAX_SERVED_NAME
from lorafleet_gateway.errors import AdapterFailed, AdapterLoading, InvalidRequest, ModelNotFound, ModelUnreadable
from lorafleet_gateway.traffic import Traffic
from lorafleet_gateway.views import (
    AdapterView,
    BaseKey,
    BaseView,
    Endpoint,
    Named,
    SliceView,
    adapter_view,
    base_view,
    salvaged_adapter,
    salvaged_base,
    slice_view,
)

SLICE_KIND: Final = "EndpointSlice"


@dataclass(frozen=True, slots=True)
class Target:
    """What a name means: pods of one base, and with an adapter the revision they should answer with."""

    name: str
    base_key: BaseKey
    base_name: str
    """For metrics: the base's served name, or its resource's while it has none."""
    revision: str | None = None
    """The stable one; None: the base itself."""
    traffic: Traffic = ()
    """Who shares the requests that insist on no revision; empty: `revision` gets all."""
    pinnable: frozenset[str] = frozenset()
    """Revisions that a client may insist on."""
    loads_on_demand: bool = True
    parts: tuple["Target", ...] = ()
    """Of a merge: its adapters, each with the revision that the pods should merge."""
    is_ad_hoc: bool = False
    """Whether it is an adapter that nobody declared, which pods look for where the request says."""

    @property
    def adapter(self) -> str | None:
        """Served name of the adapter; None for the base itself."""
        return self.name if self.revision is not None else None

    @property
    def counts_as(self) -> str:
        """Whose share of a gateway its requests take: merges of a base have one together, and so have adapters that nobody declared."""
        if self.parts or self.is_ad_hoc:
            return f"{'/'.join(self.base_key)}@{'merged' if self.parts else 'ad hoc'}"
        return self.name


def merge_of(parts: Sequence[Target]) -> Target:
    """Return what a merge of adapters means: pods of the base that they share.

    Raises:
        InvalidRequest: one is a base, or they have different bases.
    """
    first = parts[0]
    for part in parts:
        if part.revision is None:
            raise InvalidRequest(f"{part.name} is a base model, and only adapters are merged")
        if part.base_key != first.base_key:
            raise InvalidRequest(f"{first.name} and {part.name} are adapters of different base models")
    return Target(
        # long enough to tell merges apart, and not as long as a client likes
        name=",".join(part.name for part in parts)[:MAX_SERVED_NAME],
        base_key=first.base_key,
        base_name=first.base_name,
        loads_on_demand=first.loads_on_demand,
        parts=tuple(parts),
    )


@dataclass(frozen=True, slots=True)
class NotRead:
    """An object that this gateway cannot read."""

    kind: str
    where: str
    """`namespace/name`."""
    fields: tuple[str, ...]
    """What of it cannot be read."""
    is_served: bool
    """Whether what it stands for is answered all the same."""


class Directory:
    """Everything the API server says that matters for a request."""

    def __init__(
        self,
        endpoints_changed: Callable[[BaseKey], None],
        stable_of: Callable[[BaseKey, str], str | None] = lambda *_: None,
    ) -> None:
        """`stable_of`: which revision of an adapter pods of a base call stable."""
        self._endpoints_changed = endpoints_changed
        self._stable_of = stable_of
        self._names: dict[str, dict[str, Named]] = {}
        self._bases: dict[BaseKey, BaseView] = {}
        self._slices: dict[BaseKey, dict[str, SliceView]] = {}
        self.adapters = Cache(adapter_view, self._name_changed, salvaged_adapter)
        self.bases = Cache(base_view, self._base_changed, salvaged_base)
        self.slices = Cache(slice_view, self._slice_changed)

    def target(self, name: str) -> Target:
        """Return what a name means.

        Raises:
            ModelNotFound: nothing has the name.
            AdapterFailed: an adapter has it that was refused, and no revision of it is answerable.
            AdapterLoading: an adapter has it, and no revision of it is answerable yet.
            ModelUnreadable: nothing has it, but for a resource that may and cannot be read.
        """
        named = self._find(name)
        if named is None:
            self._check_unread(name)
            raise ModelNotFound(f"the model {name!r} does not exist", param="model")
        if isinstance(named, BaseView):
            return Target(name, named.key, name)
        base = self._bases.get(named.base_key)
        if named.revision is None:
            problem = named.problem or "Pending"
            if named.asks_pods:
                problem = "its stable revision cannot be read, and no pod says which one it is"
            elif named.is_refused:
                raise AdapterFailed(f"the adapter {name!r} was refused: {problem}", param="model")
            raise AdapterLoading(f"the adapter {name!r} is not answerable yet: {problem}", param="model")
        return Target(
            name=name,
            base_key=named.base_key,
            base_name=(base.name if base is not None else None) or named.base_key[1],
            revision=named.revision,
            traffic=named.traffic,
            pinnable=named.pinnable,
            loads_on_demand=base is None or base.loads_on_demand,
        )

    def ad_hoc_target(self, name: str) -> Target:
        """Return what a name means that nothing has, to a request that says where the adapter is found.

        Raises:
            ModelNotFound: no base allows that.
            InvalidRequest: several do, and which one is meant cannot be said.
        """
        bases = [view for view in self._bases.values() if view.allows_ad_hoc and not view.is_leaving and view.name]
        if not bases:
            raise ModelNotFound(
                f"the model {name!r} does not exist, and no base model has lora.adHoc: Sources", param="model"
            )
        if len(bases) > 1:
            raise InvalidRequest(
                f"{name!r} is not declared, and several base models allow to name it "
                f"({', '.join(sorted(base.name or '' for base in bases))}): declare it on one of them",
                param="model",
            )
        (base,) = bases
        return Target(
            name[:MAX_SERVED_NAME], base.key, base.name or "", loads_on_demand=base.loads_on_demand, is_ad_hoc=True
        )

    def models(self) -> list[Named]:
        """Return what answers now: bases first, then adapters that have a revision, each by name."""
        found = [named for name in self._names if (named := self._find(name)) is not None]
        answering = [n for n in found if isinstance(n, BaseView) or n.revision is not None]
        return sorted(answering, key=lambda named: (isinstance(named, AdapterView), named.name))

    def sharing(self) -> list[AdapterView]:
        """Return the adapters whose traffic several revisions share, by name."""
        return [one for one in self.models() if isinstance(one, AdapterView) and one.traffic]

    def model(self, name: str) -> Named | None:
        """Return what answers under a name now."""
        named = self._find(name)
        return None if isinstance(named, AdapterView) and named.revision is None else named

    def not_read(self) -> list[NotRead]:
        """Return the objects that cannot be read, by kind and name."""
        found = []
        for kind, one in self._unread():
            view = one.view
            if isinstance(view, BaseView | AdapterView):
                is_served = view.name is not None and self.model(view.name) is not None
            else:
                is_served = view is not None
            found.append(NotRead(kind, one.where, one.error.fields, is_served))
        return found

    def base(self, key: BaseKey) -> BaseView | None:
        """Return a base."""
        return self._bases.get(key)

    def base_names(self) -> list[str]:
        """Return the served names of all bases that stay."""
        return sorted({view.name for view in self._bases.values() if view.name is not None and not view.is_leaving})

    def base_keys(self) -> list[BaseKey]:
        """Return the bases that exist or have endpoints."""
        return sorted({*self._bases, *self._slices})

    def num_adapters(self) -> Counter[BaseKey]:
        """Return how many adapters of each base answer."""
        return Counter(named.base_key for named in self.models() if isinstance(named, AdapterView))

    def endpoints(self, key: BaseKey) -> tuple[Endpoint, ...]:
        """Return the pods of a base; one that two slices name is ready when either says so."""
        found: dict[str, Endpoint] = {}
        for view in self._slices.get(key, {}).values():
            for endpoint in view.endpoints:
                if endpoint.uid not in found or endpoint.is_ready:
                    found[endpoint.uid] = endpoint
        return tuple(found.values())

    def _find(self, name: str) -> Named | None:
        """The operator gives a name to one resource; while it moves two may show it: the oldest, then by uid."""
        holders = [named for named in self._names.get(name, {}).values() if not named.is_leaving]
        found = min(holders, key=lambda named: (named.created, named.uid), default=None)
        if not isinstance(found, AdapterView) or not found.asks_pods:
            return found
        revision = self._stable_of(found.base_key, name) or found.revision
        return replace(found, revision=revision, pinnable=found.pinnable | ({revision} if revision else set()))

    def _unread(self) -> Iterator[tuple[str, Unread[Any]]]:
        kinds: tuple[tuple[str, Cache[Any]], ...] = (
            (BASE_MODEL_KIND, self.bases),
            (ADAPTER_KIND, self.adapters),
            (SLICE_KIND, self.slices),
        )
        for kind, cache in kinds:
            yield from ((kind, one) for one in cache.unread)

    def _check_unread(self, name: str) -> None:
        """Check that nobody has a name who cannot be read.

        Raises:
            ModelUnreadable: a resource may have it.
        """
        for kind, one in self._unread():
            if name in one.error.hints and kind != SLICE_KIND:
                raise ModelUnreadable(
                    f"{kind} {one.where} may have the name {name!r}, and this gateway cannot read its {', '.join(one.error.fields)}",
                    param="model",
                )

    def _name_changed(self, old: Named | None, new: Named | None) -> None:
        if old is not None and old.name is not None:
            holders = self._names.get(old.name, {})
            holders.pop(old.uid, None)
            if not holders:
                self._names.pop(old.name, None)
        if new is not None and new.name is not None:
            self._names.setdefault(new.name, {})[new.uid] = new

    def _base_changed(self, old: BaseView | None, new: BaseView | None) -> None:
        self._name_changed(old, new)
        if old is not None and self._bases.get(old.key) is old:
            del self._bases[old.key]
        if new is not None:
            self._bases[new.key] = new

    def _slice_changed(self, old: SliceView | None, new: SliceView | None) -> None:
        if old is not None:
            slices = self._slices.get(old.base_key, {})
            slices.pop(old.uid, None)
            if not slices:
                self._slices.pop(old.base_key, None)
        if new is not None:
            self._slices.setdefault(new.base_key, {})[new.uid] = new
        for key in {view.base_key for view in (old, new) if view is not None}:
            self._endpoints_changed(key)
