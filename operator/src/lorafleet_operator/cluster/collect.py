"""Snapshots from the store: bodies become typed resources here and nowhere else."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from lorafleet_common.paths import Json
from lorafleet_contract.guests import Guests
from lorafleet_contract.names import ADAPTER_KIND, BASE_MODEL_KIND, ENGINE_CONTAINER, LABEL_BASE
from lorafleet_contract.resources import AdapterResource, BaseModelResource, ObjectMeta, ReservedName
from lorafleet_operator.cluster.store import Kind, Store
from lorafleet_operator.decide.kept_names import reserved_by
from lorafleet_operator.decide.objects import ANNOTATION_TEMPLATE
from lorafleet_operator.decide.pod_words import has_begun, is_being_created, problem_of, stage_of
from lorafleet_operator.decide.views import BaseKey, BrokenResource, Claim, Pod, Snapshot

R = TypeVar("R", bound=BaseModel)
POD_TEMPLATE: Final = "pod-template-hash"
GROUPS_NAME: Final = "leaderworkerset.sigs.k8s.io/name"
GROUPS_INDEX: Final = "leaderworkerset.sigs.k8s.io/worker-index"
GROUPS_TEMPLATE: Final = "leaderworkerset.sigs.k8s.io/template-revision-hash"
"""Labels that Deployments and LeaderWorkerSets give to their pods."""
COMING_UP: Final = timedelta(minutes=10)
"""A pod that has not been ready for longer is not counted on for new adapters."""


def base_key_of(kind: Kind, body: Json) -> BaseKey | None:
    """Return which base an object belongs to; None when it names none."""
    metadata = body["metadata"]
    namespace = metadata["namespace"]
    if kind is Kind.BASE:
        return (namespace, metadata["name"])
    if kind is Kind.ADAPTER:
        ref = (body.get("spec") or {}).get("baseModelRef") or {}
        return (ref.get("namespace") or namespace, ref["name"]) if ref.get("name") else None
    name = (metadata.get("labels") or {}).get(LABEL_BASE)
    return (namespace, name) if name else None


def served_name_of(body: Json) -> str:
    """Return the model name that a BaseModelDeployment or LoraAdapter asks for."""
    return str((body.get("spec") or {}).get("servedName") or body["metadata"]["name"])


def all_keys(store: Store) -> set[BaseKey]:
    """Return every base that exists or is named by something."""
    return {key for kind in Kind for body in store.all(kind) if (key := base_key_of(kind, body)) is not None}


def claims_of(store: Store, now: datetime) -> dict[str, Claim]:
    """Return who has each served name: of those that may claim it the oldest, then the one with the lower uid.

    A base claims before its own adapters. An adapter claims when its base exists and allows its namespace and the name,
    or while a revision of it serves. What is being deleted has its name until it is gone; a name that served lately goes
    to its last namespace only.
    """
    bodies = store.all(Kind.BASE)
    bases = {(b["metadata"]["namespace"], b["metadata"]["name"]): b for b in bodies if _is_alive(b)}
    reserved = _reserved(bases.values(), now)
    for entry in reserved_by(store.kept_bases, bases.keys(), now):
        if entry.name not in reserved or reserved[entry.name].until < entry.until:
            reserved[entry.name] = entry
    asked = [store.read(body, _asked_by, "asked") for body in store.all(Kind.ADAPTER)]
    # a status that is written changes none of it, but once in the life of a name
    return store.recall("claims", (bodies, asked, reserved), lambda: _claims(bodies, bases, asked, reserved))


@dataclass(frozen=True, slots=True)
class _Asked:
    """What of an adapter decides whether it has its served name."""

    key: BaseKey | None
    name: str
    namespace: str
    created: str
    uid: str
    title: str
    has_stable: bool


def _asked_by(body: Json) -> _Asked:
    metadata = body["metadata"]
    return _Asked(
        base_key_of(Kind.ADAPTER, body),
        served_name_of(body),
        metadata["namespace"],
        metadata.get("creationTimestamp") or "",
        metadata["uid"],
        f"{ADAPTER_KIND} {metadata['namespace']}/{metadata['name']}",
        bool((body.get("status") or {}).get("stableRevision")),
    )


def _claims(
    bodies: Iterable[Json], bases: Mapping[BaseKey, Json], asked: Iterable[_Asked], reserved: Mapping[str, ReservedName]
) -> dict[str, Claim]:
    guests = {key: _guests_of(body) for key, body in bases.items()}
    best: dict[str, tuple[str, str, str]] = {}

    def claim(name: str, namespace: str, created: str, uid: str, title: str) -> None:
        if name in reserved and reserved[name].namespace != namespace:
            return
        one = (created, uid, title)
        if name not in best or one < best[name]:
            best[name] = one

    for body in bodies:
        metadata = body["metadata"]
        title = f"{BASE_MODEL_KIND} {metadata['namespace']}/{metadata['name']}"
        created = metadata.get("creationTimestamp") or ""
        claim(served_name_of(body), metadata["namespace"], created, metadata["uid"], title)
    for one in asked:
        base = bases.get(one.key) if one.key is not None else None
        if base is None or one.key is None:
            may = one.has_stable
        else:
            may = served_name_of(base) != one.name and _is_allowed(one, base, guests[one.key])
        if may:
            claim(one.name, one.namespace, one.created, one.uid, one.title)
    kept = {name: Claim("", f"namespace {entry.namespace}", entry.until) for name, entry in reserved.items()}
    return kept | {name: Claim(uid, title) for name, (_, uid, title) in best.items()}


def _is_alive(body: Json) -> bool:
    return not body["metadata"].get("deletionTimestamp")


def _guests_of(base: Json) -> Guests:
    try:
        return Guests.model_validate(((base.get("spec") or {}).get("lora") or {}).get("guests") or {})
    except ValidationError:
        return Guests()  # the base itself is refused for it


def _is_allowed(adapter: _Asked, base: Json, guests: Guests) -> bool:
    if adapter.namespace == base["metadata"]["namespace"]:
        return True
    allowed = (base.get("spec") or {}).get("allowedNamespaces") or []
    return bool({"*", adapter.namespace} & set(allowed)) and guests.limits_of(adapter.namespace).may_use(adapter.name)


def _reserved(bases: Iterable[Json], now: datetime) -> dict[str, ReservedName]:
    found: dict[str, ReservedName] = {}
    for base in bases:
        for entry in (base.get("status") or {}).get("reservedNames") or []:
            with contextlib.suppress(ValidationError):
                one = ReservedName.model_validate(entry)
                if one.until > now and (one.name not in found or found[one.name].until < one.until):
                    found[one.name] = one
    return found


def rivals_of(store: Store, body: Json) -> set[BaseKey]:
    """Return the bases of everything else that asks for the same served name."""
    name, uid = served_name_of(body), body["metadata"]["uid"]
    return {
        key
        for kind in (Kind.BASE, Kind.ADAPTER)
        for other in store.all(kind)
        if other["metadata"]["uid"] != uid
        and served_name_of(other) == name
        and (key := base_key_of(kind, other)) is not None
    }


def snapshot_of(store: Store, key: BaseKey, now: datetime) -> Snapshot:
    """Return what is known of one base."""
    broken: list[BrokenResource] = []
    bases = _parsed(store, _of_key(store, Kind.BASE, key), BaseModelResource, BASE_MODEL_KIND, broken)
    adapters = _parsed(store, _of_key(store, Kind.ADAPTER, key), AdapterResource, ADAPTER_KIND, broken)
    own = (pod_of(body, now) for body in _of_key(store, Kind.POD, key) if _is_own(body, key[1]))
    alive = [base for base in bases if base.metadata.deletion_timestamp is None]
    # of two bases of the same name the older one is gone, and its event is on its way
    alive.sort(key=lambda base: (base.metadata.creation_timestamp or now, base.metadata.uid))
    return Snapshot(
        key=key,
        base=_with_left(alive[-1], store) if alive else None,
        adapters=tuple(sorted(adapters, key=lambda adapter: (adapter.metadata.namespace, adapter.metadata.name))),
        pods=tuple(sorted(own, key=lambda pod: pod.name)),
        claims=claims_of(store, now),
        broken=tuple(broken),
        are_orphans_known=store.are_listed(Kind.ADAPTER, _homes(key, alive), times=2),
        are_pods_hidden=store.is_hidden(Kind.POD, key[0]),
        now=now,
    )


def _with_left(base: BaseModelResource, store: Store) -> BaseModelResource:
    """Return a base that has no status yet with the reservations that the last one of its name left."""
    kept = store.kept_bases.get((base.metadata.namespace, base.metadata.name))
    if kept is None or base.status.observed_generation is not None:
        return base
    return base.model_copy(update={"status": base.status.model_copy(update={"reserved_names": kept.reserved})})


def _homes(key: BaseKey, bases: Iterable[BaseModelResource]) -> set[str]:
    """Return the namespaces whose adapters a base may have."""
    return {key[0]}.union(*(base.spec.allowed_namespaces for base in bases))


def bases_of(store: Store) -> list[BaseModelResource]:
    """Return every base that is there and can be read."""
    return [
        base
        for base in _parsed(store, store.all(Kind.BASE), BaseModelResource, BASE_MODEL_KIND, [])
        if base.metadata.deletion_timestamp is None
    ]


def pod_of(body: Json, now: datetime) -> Pod:
    """Return what matters of a pod."""
    metadata, status = body["metadata"], body.get("status") or {}
    engine: Json = next((c for c in status.get("containerStatuses") or [] if c["name"] == ENGINE_CONTAINER), {})
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    ready, scheduled = conditions.get("Ready", {}), conditions.get("PodScheduled", {})
    is_ready = ready.get("status") == "True"
    created = datetime.fromisoformat(metadata["creationTimestamp"])
    since = datetime.fromisoformat(ready["lastTransitionTime"]) if ready.get("lastTransitionTime") else created
    ended = status.get("phase") in ("Succeeded", "Failed")
    return Pod(
        uid=metadata["uid"],
        name=metadata["name"],
        ip=status.get("podIP"),
        is_ready=is_ready and not ended,
        is_leaving=bool(metadata.get("deletionTimestamp")) or ended,
        is_running="running" in (engine.get("state") or {}) and bool(engine.get("started")),
        is_coming_up=not is_ready and scheduled.get("status") == "True" and now - since < COMING_UP,
        template=_template_of(metadata.get("labels") or {}),
        created_at=created,
        problem=problem_of(status),
        stage=stage_of(status),
        is_being_created=is_being_created(status),
        has_failed=status.get("phase") == "Failed",
        built_from=(metadata.get("annotations") or {}).get(ANNOTATION_TEMPLATE, ""),
    )


def _is_own(body: Json, base: str) -> bool:
    """Whether a pod comes from the Deployment of the base, or is the first of a group of its LeaderWorkerSet.

    Whatever else carries the label is not told the token. The garbage collector and the ReplicaSet, or the StatefulSet, end a pod that
    only claims such an owner.
    """
    metadata = body["metadata"]
    labels = metadata.get("labels") or {}
    owners = {("ReplicaSet", f"{base}-{labels.get(POD_TEMPLATE, '')}")}
    if labels.get(GROUPS_NAME) == base and labels.get(GROUPS_INDEX) == "0":
        owners.add(("StatefulSet", base))
    return any(
        owner.get("controller") and (owner.get("kind"), owner.get("name")) in owners
        for owner in metadata.get("ownerReferences") or []
    )


def further_pod_of(body: Json, base: str, now: datetime) -> Pod | None:
    """Return what matters of a pod that is of a group of the base and not its first; None of any other.

    Its stage is told until its engine runs: from then on the first pod speaks for all.
    """
    metadata = body["metadata"]
    labels, group = metadata.get("labels") or {}, f"{base}-"
    if labels.get(GROUPS_NAME) != base or labels.get(GROUPS_INDEX, "0") == "0":
        return None
    owners = [owner for owner in metadata.get("ownerReferences") or [] if owner.get("controller")]
    if not any(owner.get("kind") == "StatefulSet" and owner.get("name", "").startswith(group) for owner in owners):
        return None
    pod = pod_of(body, now)
    return replace(pod, stage="") if has_begun(body.get("status") or {}) else pod


def _template_of(labels: Json) -> str:
    """Return which template a pod is of, as its controller calls it."""
    return str(labels.get(POD_TEMPLATE) or labels.get(GROUPS_TEMPLATE) or "")


def _of_key(store: Store, kind: Kind, key: BaseKey) -> list[Json]:
    if kind is Kind.ADAPTER:
        return [body for body in store.all(kind) if store.read(body, _asked_by, "asked").key == key]
    return [body for body in store.all(kind) if base_key_of(kind, body) == key]


def _parsed(store: Store, bodies: Iterable[Json], model: type[R], kind: str, broken: list[BrokenResource]) -> list[R]:
    parsed = []
    for body in bodies:
        try:
            parsed.append(store.read(body, partial(_read, model)))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            meta = ObjectMeta.model_validate(body["metadata"])
            broken.append(BrokenResource(kind, meta, f"{where}: {first['msg']}", body))
    return parsed


def _read(model: type[R], body: Json) -> R:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        # what another version of the operator wrote into status is not worth a refusal: it is made again
        places = [problem["loc"] for problem in error.errors(include_input=False, include_url=False)]
        if any(place[:1] != ("status",) for place in places):
            raise
    try:
        return model.model_validate({**body, "status": _without(body["status"], places)})
    except ValidationError:
        return model.model_validate({name: value for name, value in body.items() if name != "status"})


def _without(status: Any, places: Iterable[tuple[int | str, ...]]) -> Json:
    """Return a status without what cannot be read of it: a field, or where that is a list, the entry.

    All else stays: without its stable revision an adapter would be switched at once, without its operator a base would be
    anybody's, and what is not reserved is free to take.
    """
    fields: set[int | str] = set()
    entries: set[tuple[int | str, ...]] = set()
    for place in places:
        if len(place) < 2:
            return {}
        if len(place) > 2 and isinstance(place[2], int):
            entries.add(place[1:3])
        else:
            fields.add(place[1])
    return {
        name: [entry for index, entry in enumerate(value) if (name, index) not in entries]
        if isinstance(value, list)
        else value
        for name, value in status.items()
        if name not in fields
    }
