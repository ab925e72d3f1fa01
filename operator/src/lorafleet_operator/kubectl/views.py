"""A fleet at a glance and as a tree: what resources and pods say, as the commands show it. Pure."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from lorafleet_contract.admin import AdapterState
from lorafleet_contract.base import Wire
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterResource, BaseModelResource, Condition, PlacementStatus
from lorafleet_operator.decide.conditions import READY, condition_of
from lorafleet_operator.decide.views import Pod, Snapshot


class Standing(Wire):
    """What Ready says of a resource."""

    ready: str
    """True, False or Unknown, of the spec as it is now."""
    reason: str
    message: str


class BaseLine(Wire):
    """A BaseModelDeployment at a glance."""

    namespace: str
    name: str
    served_name: str
    standing: Standing
    ready_pods: int
    pods: int
    """As spec or its autoscaling wants them."""
    ready_adapters: int
    adapters: int
    assigned_slots: int
    slots: int


class AdapterLine(Wire):
    """A LoraAdapter at a glance."""

    namespace: str
    name: str
    served_name: str
    base_namespace: str
    base: str
    standing: Standing
    stable_revision: str | None
    desired_revision: str | None
    mode: str
    resident: int
    """Pods that keep it."""
    desired: int
    """Pods that should."""
    last_used: datetime | None


class HeldAdapter(Wire):
    """A revision of an adapter that a pod keeps, or failed to load."""

    namespace: str
    name: str
    served_name: str
    revision: str
    is_stable: bool
    """The bare name means it."""
    tier: str | None
    state: str
    reason: str | None
    message: str | None


class PodNode(Wire):
    """A pod and what it keeps."""

    name: str
    is_ready: bool | None
    """None: pods are not shown."""
    words: str
    """Why it is not ready; empty without a known reason."""
    adapters: list[HeldAdapter]


class BaseNode(Wire):
    """A base, its pods, and adapters that no pod keeps."""

    base: BaseLine
    pods: list[PodNode]
    elsewhere: list[AdapterLine]
    num_unlisted: int
    """Placements beyond those that statuses list."""


class FleetStatus(Wire):
    """Bases and adapters at a glance."""

    bases: list[BaseLine]
    adapters: list[AdapterLine]
    notes: list[str] = []


class FleetTree(Wire):
    """Bases, their pods and adapters; adapters whose base is not shown or not there."""

    bases: list[BaseNode]
    orphans: list[AdapterLine]
    notes: list[str] = []


def base_line(base: BaseModelResource) -> BaseLine:
    """Return a base at a glance."""
    status = base.status
    return BaseLine(
        namespace=base.metadata.namespace,
        name=base.metadata.name,
        served_name=base.served_name,
        standing=standing_of(status.conditions, status.observed_generation, base.metadata.generation),
        ready_pods=status.ready_replicas,
        pods=base.wanted_replicas,
        ready_adapters=status.adapters.ready,
        adapters=status.adapters.desired,
        assigned_slots=status.capacity.assigned_adapter_slots,
        slots=status.capacity.adapter_slots,
    )


def adapter_line(adapter: AdapterResource) -> AdapterLine:
    """Return an adapter at a glance."""
    status, ref = adapter.status, adapter.spec.base_model_ref
    return AdapterLine(
        namespace=adapter.metadata.namespace,
        name=adapter.metadata.name,
        served_name=adapter.served_name,
        base_namespace=ref.namespace or adapter.metadata.namespace,
        base=ref.name,
        standing=standing_of(status.conditions, status.observed_generation, adapter.metadata.generation),
        stable_revision=status.stable_revision,
        desired_revision=status.desired_revision,
        mode=adapter.placement.mode,
        resident=status.replicas.resident,
        desired=status.replicas.desired,
        last_used=status.last_used,
    )


def standing_of(conditions: Sequence[Condition], observed: int | None, generation: int) -> Standing:
    """Return what Ready says; Unknown where it is said of an earlier spec, as kstatus has it."""
    ready = condition_of(conditions, READY)
    if ready is None or observed is None:
        return Standing(ready="Unknown", reason=Reason.PENDING, message="the operator has not looked at it yet")
    if observed != generation:
        message = f"the operator has not looked at generation {generation} yet; of {observed}: {ready.reason}"
        return Standing(ready="Unknown", reason=Reason.PENDING, message=message)
    return Standing(ready=ready.status, reason=ready.reason, message=ready.message)


def status_of(snapshots: Iterable[Snapshot], namespace: str | None) -> FleetStatus:
    """Return what of a namespace there is; None is all."""
    bases: list[BaseLine] = []
    adapters: list[AdapterLine] = []
    for snapshot in snapshots:
        if snapshot.base is not None and namespace in (None, snapshot.key[0]):
            bases.append(base_line(snapshot.base))
        adapters.extend(
            adapter_line(adapter) for adapter in snapshot.adapters if namespace in (None, adapter.metadata.namespace)
        )
    bases.sort(key=lambda line: (line.namespace, line.name))
    adapters.sort(key=lambda line: (line.namespace, line.name))
    return FleetStatus(bases=bases, adapters=adapters)


def tree_of(snapshots: Iterable[Snapshot], namespace: str | None) -> FleetTree:
    """Return the bases of a namespace with all of their pods and adapters, and its adapters that have no base here."""
    nodes, orphans = [], []
    for snapshot in sorted(snapshots, key=lambda snapshot: snapshot.key):
        if snapshot.base is None:
            orphans += [a for a in snapshot.adapters if namespace in (None, a.metadata.namespace)]
        elif namespace in (None, snapshot.key[0]):
            nodes.append(_node(snapshot.base, snapshot))
    return FleetTree(bases=nodes, orphans=[adapter_line(adapter) for adapter in orphans])


def _node(base: BaseModelResource, snapshot: Snapshot) -> BaseNode:
    known = {pod.uid: pod for pod in snapshot.pods}
    names = {pod.uid: pod.name for pod in snapshot.pods}
    held: dict[str, list[HeldAdapter]] = {uid: [] for uid in known}
    elsewhere = []
    for adapter in snapshot.adapters:
        for placement in adapter.status.placements:
            if placement.pod_uid not in known and not snapshot.are_pods_hidden:
                continue  # that pod is gone: the operator writes the status anew soon
            names.setdefault(placement.pod_uid, placement.pod)
            held.setdefault(placement.pod_uid, []).append(_held(adapter, placement))
        if not any(placement.pod_uid in held for placement in adapter.status.placements):
            elsewhere.append(adapter_line(adapter))
    pods = [
        PodNode(
            name=name,
            is_ready=None if uid not in known else known[uid].is_ready and not known[uid].is_leaving,
            words=_words(known.get(uid)),
            adapters=sorted(held[uid], key=lambda entry: (entry.served_name, entry.revision)),
        )
        for uid, name in sorted(names.items(), key=lambda item: item[1])
    ]
    num_unlisted = sum(adapter.status.placements_truncated or 0 for adapter in snapshot.adapters)
    return BaseNode(base=base_line(base), pods=pods, elsewhere=elsewhere, num_unlisted=num_unlisted)


def _held(adapter: AdapterResource, placement: PlacementStatus) -> HeldAdapter:
    return HeldAdapter(
        namespace=adapter.metadata.namespace,
        name=adapter.metadata.name,
        served_name=adapter.served_name,
        revision=placement.revision,
        is_stable=placement.revision == adapter.status.stable_revision,
        tier=placement.tier,
        state=placement.state,
        reason=placement.reason,
        message=placement.message,
    )


def is_well(held: HeldAdapter) -> bool:
    """Whether a pod answers with what it keeps."""
    return held.state == AdapterState.READY


def _words(pod: Pod | None) -> str:
    if pod is None or (pod.is_ready and not pod.is_leaving):
        return ""
    return "is leaving" if pod.is_leaving and not pod.has_failed else pod.problem or pod.stage
