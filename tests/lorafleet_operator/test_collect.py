"""From bodies to views: who has a name, what a pod is, and what is not readable."""

from datetime import timedelta

from support.operator_views import KEY, NOW

from lorafleet_common.kube.client import Listed
from lorafleet_operator.cluster.collect import (
    all_keys,
    base_key_of,
    claims_of,
    further_pod_of,
    pod_of,
    rivals_of,
    snapshot_of,
)
from lorafleet_operator.cluster.store import Kind, Store


def body(
    name: str, *, namespace: str = "team", created: str = "2026-01-01T00:00:00Z", version: int = 1, **spec
) -> dict:
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}", "creationTimestamp": created}
    return {"metadata": {**metadata, "resourceVersion": str(version)}, "spec": spec}


def adapter(name: str, **more) -> dict:
    return body(name, baseModelRef={"name": "base"}, source={"name": "models", "path": "x"}, **more)


def store_of(*adapters: dict, bases: tuple[dict, ...] = (), pods: tuple[dict, ...] = ()) -> Store:
    store = Store()
    for kind, bodies in ((Kind.ADAPTER, adapters), (Kind.BASE, bases), (Kind.POD, pods)):
        for one in bodies:
            store.put(kind, one)
    return store


def base_body(name: str = "base", *, created: str = "2025-01-01T00:00:00Z", status: dict | None = None, **spec) -> dict:
    made = body(name, created=created, model={"volume": {"claimName": "m"}}, **spec)
    return {**made, "status": status or {}}


def holder(*adapters: dict, bases: tuple[dict, ...] = (), name: str = "x") -> str | None:
    claim = claims_of(store_of(*adapters, bases=bases), NOW).get(name)
    return claim.title if claim is not None else None


def test_oldest_has_the_name_then_the_lower_uid() -> None:
    young, old = adapter("b", servedName="x", created="2026-02-01T00:00:00Z"), adapter("c", servedName="x")
    twin = adapter("a", servedName="x")
    assert holder(young, old, bases=(base_body(),)) == "LoraAdapter team/c"
    assert holder(young, old, twin, bases=(base_body(),)) == "LoraAdapter team/a"


def test_name_cannot_be_squatted_by_what_is_not_accepted() -> None:
    """Neither by an adapter whose base is not there, nor by one of a namespace that the base does not allow."""
    ref = {"name": "base", "namespace": "team"}
    squatters = (
        body("x", namespace="z", baseModelRef={"name": "whatever"}),
        body("y", namespace="z", servedName="x", baseModelRef=ref),
    )
    mine = adapter("mine", servedName="x", created="2026-06-01T00:00:00Z")
    assert holder(*squatters, mine, bases=(base_body(),)) == "LoraAdapter team/mine"
    assert holder(*squatters, bases=(base_body(),)) is None
    late = base_body("x", created="2026-07-01T00:00:00Z")
    assert holder(squatters[0], bases=(late,)) == "BaseModelDeployment team/x"
    allowing = base_body(allowedNamespaces=["z"])
    assert holder(*squatters, mine, bases=(allowing,)) == "LoraAdapter z/y"


def test_guests_claim_the_names_that_the_base_allows_them() -> None:
    def guests(**limits) -> dict:
        return base_body(allowedNamespaces=["*"], lora={"guests": limits})

    guest = body("x", namespace="z", baseModelRef={"name": "base", "namespace": "team"})
    assert holder(guest, bases=(guests(servedNames=["z-*"]),)) is None
    assert holder(guest, bases=(guests(servedNames=["z-*", "x"]),)) == "LoraAdapter z/x"
    exception = [{"name": "z", "servedNames": ["x"]}]
    assert holder(guest, bases=(guests(servedNames=["z-*"], namespaces=exception),)) == "LoraAdapter z/x"


def test_base_claims_before_its_own_adapters_and_takes_no_name_from_others() -> None:
    own = adapter("x", created="2024-01-01T00:00:00Z", servedName="base")
    assert holder(own, bases=(base_body(),), name="base") == "BaseModelDeployment team/base"
    other = body("y", servedName="base", created="2024-01-01T00:00:00Z", baseModelRef={"name": "second"})
    both = (base_body(), base_body("second"))
    assert holder(own, other, bases=both, name="base") == "LoraAdapter team/y"


def test_adapter_that_serves_keeps_its_name_while_its_base_is_recreated() -> None:
    serving = {**adapter("x"), "status": {"stableRevision": "0123456789ab"}}
    other = body(
        "x", namespace="z", created="2025-12-01T00:00:00Z", baseModelRef={"name": "second", "namespace": "team"}
    )
    second = base_body("second", allowedNamespaces=["z"])
    assert (
        holder(
            {**other, "metadata": {**other["metadata"], "creationTimestamp": "2026-02-01T00:00:00Z"}},
            serving,
            bases=(second,),
        )
        == "LoraAdapter team/x"
    )


def test_name_that_served_waits_for_its_namespace() -> None:
    def base(hours: float) -> dict:
        until = (NOW + timedelta(hours=hours)).isoformat()
        entry = {"name": "x", "namespace": "team", "until": until}
        return base_body(allowedNamespaces=["z"], status={"reservedNames": [entry]})

    waiting = body(
        "x", namespace="z", created="2025-06-01T00:00:00Z", baseModelRef={"name": "base", "namespace": "team"}
    )
    back = adapter("x", created="2026-06-01T00:00:00Z")
    assert holder(waiting, bases=(base(1),)) == "namespace team"
    assert "reserved" in claims_of(store_of(waiting, bases=(base(1),)), NOW)["x"].refuses("x")
    assert holder(waiting, back, bases=(base(1),)) == "LoraAdapter team/x"
    assert holder(waiting, bases=(base(-1),)) == "LoraAdapter z/x"


def test_bases_have_names_too() -> None:
    store = store_of(adapter("x", servedName="base"), bases=(base_body(),))
    assert claims_of(store, NOW)["base"].title == "BaseModelDeployment team/base"
    assert rivals_of(store, base_body()) == {KEY}


def test_pod_that_only_carries_the_label_is_left_alone() -> None:
    """It would be sent the bearer token."""

    def pod(name: str, owner: dict | None) -> dict:
        made = pod_body()
        labels = {"lorafleet.io/base": "base", "pod-template-hash": "abc"}
        owners = [] if owner is None else [{"apiVersion": "apps/v1", "controller": True, "uid": "u", **owner}]
        made["metadata"] |= {"name": name, "uid": name, "labels": labels, "ownerReferences": owners}
        return made

    pods = (
        pod("ours", {"kind": "ReplicaSet", "name": "base-abc"}),
        pod("bare", None),
        pod("job", {"kind": "Job", "name": "base-abc"}),
        pod("other", {"kind": "ReplicaSet", "name": "evil-abc"}),
    )
    assert [one.name for one in snapshot_of(store_of(pods=pods), KEY, NOW).pods] == ["ours"]


def test_of_pods_of_a_group_the_first_is_one_of_the_base() -> None:
    def pod(name: str, owner: str = "base", *, index: str = "0", group: str = "base") -> dict:
        made = pod_body()
        labels = {
            "lorafleet.io/base": "base",
            "leaderworkerset.sigs.k8s.io/name": group,
            "leaderworkerset.sigs.k8s.io/worker-index": index,
            "leaderworkerset.sigs.k8s.io/template-revision-hash": "abc",
        }
        owners = [{"apiVersion": "apps/v1", "kind": "StatefulSet", "controller": True, "uid": "u", "name": owner}]
        made["metadata"] |= {"name": name, "uid": name, "labels": labels, "ownerReferences": owners}
        return made

    pods = (pod("first"), pod("other", index="1"), pod("foreign", "evil"), pod("of another set", group="evil"))
    (found,) = snapshot_of(store_of(pods=pods), KEY, NOW).pods
    assert (found.name, found.template) == ("first", "abc")


GROUPED = {"leaderworkerset.sigs.k8s.io/name": "base", "leaderworkerset.sigs.k8s.io/worker-index": "1"}


def further_body(labels: dict = GROUPED, *, kind: str = "StatefulSet", owner: str = "base-0", **state: dict) -> dict:
    made = pod_body(state=state or None)
    owners = [{"apiVersion": "apps/v1", "kind": kind, "controller": True, "uid": "u", "name": owner}]
    made["metadata"] |= {"name": f"{owner}-1", "labels": labels, "ownerReferences": owners}
    return made


def test_further_pod_of_a_group_tells_its_stage_until_it_runs() -> None:
    created = further_pod_of(further_body(waiting={"reason": "ContainerCreating"}), "base", NOW)
    assert created is not None
    assert (created.name, created.stage) == ("base-0-1", "its containers are being created: volumes, image")
    assert created.is_being_created
    running = further_pod_of(further_body(), "base", NOW)
    assert running is not None
    assert (running.is_ready, running.stage) == (False, ""), "the first pod says how far all are"


def test_what_only_carries_the_labels_of_a_group_is_none_of_its_pods() -> None:
    others = (
        further_body({**GROUPED, "leaderworkerset.sigs.k8s.io/worker-index": "0"}),
        further_body({**GROUPED, "leaderworkerset.sigs.k8s.io/name": "other"}),
        further_body({}),
        further_body(kind="Job"),
        further_body(owner="other-0"),
    )
    assert [further_pod_of(one, "base", NOW) for one in others] == [None] * len(others)


def test_key_of_an_object_is_its_base() -> None:
    other = body("x", baseModelRef={"name": "base", "namespace": "elsewhere"})
    pod = {"metadata": {"name": "p", "namespace": "team", "uid": "u", "labels": {"lorafleet.io/base": "base"}}}
    assert base_key_of(Kind.ADAPTER, adapter("a")) == KEY
    assert base_key_of(Kind.ADAPTER, other) == ("elsewhere", "base")
    assert base_key_of(Kind.POD, pod) == KEY
    assert base_key_of(Kind.ADAPTER, body("x")) is None
    assert all_keys(store_of(adapter("a"), other, pods=(pod,))) == {KEY, ("elsewhere", "base")}


def test_what_cannot_be_read_is_named_and_the_rest_is_there() -> None:
    odd = body("odd", baseModelRef={"name": "base"}, source={"name": "models", "path": "../x"})
    snapshot = snapshot_of(store_of(odd, adapter("fine")), KEY, NOW)
    assert [a.metadata.name for a in snapshot.adapters] == ["fine"]
    assert [b.meta.name for b in snapshot.broken] == ["odd"]
    assert snapshot.broken[0].problem.startswith("spec.source.path")


def test_unreadable_status_is_made_again() -> None:
    fine = {**adapter("fine"), "status": {"artifact": {"source": {}}, "conditions": []}}
    snapshot = snapshot_of(store_of(fine), KEY, NOW)
    assert snapshot.broken == ()
    assert snapshot.adapters[0].status.artifact is None


def from_another_version(document: object) -> object:
    """Return a document with a field in every object that this version does not know."""
    if isinstance(document, list):
        return [from_another_version(entry) for entry in document]
    if not isinstance(document, dict):
        return document
    return {**{name: from_another_version(value) for name, value in document.items()}, "fieldOfLater": {"of": 2}}


CONDITION = {"type": "Ready", "status": "True", "reason": "Serving", "lastTransitionTime": "2026-01-01T00:00:00Z"}
ARTIFACT = {
    "source": {"name": "models", "path": "x"},
    "digest": f"sha256:{'0' * 64}",
    "revision": "0" * 12,
    "sizeBytes": 1,
    "rank": 8,
    "files": [{"path": "adapter_config.json", "sizeBytes": 1, "sha256": "0" * 64}],
}
ADAPTER_STATUS = {
    "stableRevision": "0" * 12,
    "artifact": ARTIFACT,
    "stableArtifact": ARTIFACT,
    "placements": [{"pod": "p", "podUid": "u", "revision": "0" * 12, "state": "Ready"}],
    "replicas": {"desired": 1, "resident": 1},
    "history": [{"revision": "0" * 12, "digest": f"sha256:{'0' * 64}", "since": "2026-01-01T00:00:00Z"}],
    "traffic": [{"revision": "0" * 12, "weight": 100}],
    "conditions": [CONDITION],
}
BASE_STATUS = {
    "operator": "system/lorafleet",
    "reservedNames": [{"name": "x", "namespace": "z", "until": "2036-02-01T00:00:00Z"}],
    "capacity": {"adapterSlots": 8},
    "adapters": {"ready": 1},
    "conditions": [CONDITION],
}


def test_status_that_a_later_version_wrote_is_read_whole() -> None:
    """After a rollback of the operator, too, an adapter has its stable revision and a base its operator and reservations."""
    given = [ADAPTER_STATUS, BASE_STATUS]
    read = []
    for adapter_status, base_status in (given, [from_another_version(status) for status in given]):
        one = {**adapter("a"), "status": adapter_status}
        store = store_of(one, bases=({**base_body(), "status": base_status},))
        snapshot = snapshot_of(store, KEY, NOW)
        assert snapshot.base is not None
        read.append((snapshot.adapters[0].status, snapshot.base.status, claims_of(store, NOW)))
    assert read[0] == read[1]
    assert read[0][0].stable_artifact is not None
    assert read[0][1].reserved_names != []
    assert read[0][2]["x"].uid == "", "nobody but its namespace may have what is reserved"


def test_of_a_status_only_what_cannot_be_read_is_made_again() -> None:
    odd = {
        **ADAPTER_STATUS,
        "artifact": {"source": {}},
        "rollout": {"phase": "OfLater"},
        "history": [{"revision": 7}, *ADAPTER_STATUS["history"]],
    }
    snapshot = snapshot_of(store_of({**adapter("a"), "status": odd}), KEY, NOW)
    status = snapshot.adapters[0].status
    assert (status.artifact, status.rollout) == (None, None)
    assert (status.stable_revision, len(status.history), len(status.placements)) == ("0" * 12, 1, 1)
    assert status.stable_artifact is not None
    entry = {"name": "x", "namespace": "z", "until": "never"}
    base = base_body(status={**BASE_STATUS, "reservedNames": [entry, *BASE_STATUS["reservedNames"]], "capacity": 3})
    held = snapshot_of(store_of(bases=(base,)), KEY, NOW).base
    assert held is not None
    assert (held.status.operator, len(held.status.reserved_names)) == ("system/lorafleet", 1)


def test_base_that_is_being_deleted_is_none() -> None:
    base = body("base", model={"volume": {"claimName": "m"}})
    base["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert snapshot_of(store_of(bases=(base,)), KEY, NOW).base is None


def pod_body(
    *,
    ready: str = "False",
    since: timedelta = timedelta(),
    scheduled: str = "True",
    state: dict | None = None,
    **status,
) -> dict:
    at = (NOW - since).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [
        {"type": "PodScheduled", "status": scheduled, "reason": "Unschedulable", "message": "0/1 nodes"},
        {"type": "Ready", "status": ready, "lastTransitionTime": at},
    ]
    engine = {"name": "engine", "started": ready == "True", "state": state or {"running": {}}}
    metadata = {"name": "p", "namespace": "team", "uid": "u", "creationTimestamp": at}
    return {
        "metadata": metadata,
        "status": {"conditions": conditions, "containerStatuses": [engine], "podIP": "10.0.0.1", **status},
    }


def test_pod_is_counted_on_for_a_while() -> None:
    assert pod_of(pod_body(), NOW).is_coming_up
    assert not pod_of(pod_body(since=timedelta(minutes=11)), NOW).is_coming_up
    assert not pod_of(pod_body(scheduled="False"), NOW).is_coming_up
    assert not pod_of(pod_body(ready="True"), NOW).is_coming_up
    assert pod_of(pod_body(ready="True"), NOW).is_ready


def test_pod_that_has_ended_is_leaving() -> None:
    assert pod_of(pod_body(ready="True", phase="Failed"), NOW).is_leaving
    assert not pod_of(pod_body(ready="True", phase="Failed"), NOW).is_ready


def test_pod_says_what_keeps_it() -> None:
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    assert pod_of(pod_body(state=waiting), NOW).problem == "CrashLoopBackOff: back-off 10s"
    assert pod_of(pod_body(scheduled="False"), NOW).problem == "Unschedulable: 0/1 nodes"
    assert pod_of(pod_body(state={"waiting": {"reason": "ContainerCreating"}}), NOW).problem == ""
    assert pod_of(pod_body(), NOW).problem == ""


def test_store_never_goes_back() -> None:
    store = Store()
    assert store.put(Kind.ADAPTER, adapter("a", version=5))
    assert not store.put(Kind.ADAPTER, adapter("a", version=4))
    assert not store.put(Kind.ADAPTER, adapter("a", version=5))
    assert store.put(Kind.ADAPTER, adapter("a", version=10))
    store.remove(Kind.ADAPTER, "uid-team-a", 12)
    assert not store.put(Kind.ADAPTER, adapter("a", version=11))


def test_object_that_comes_back_is_seen() -> None:
    """A pod whose label was taken off and put back: the watch said DELETED, and it is the same uid."""
    store = Store()
    store.put(Kind.POD, adapter("a", version=5))
    assert store.remove(Kind.POD, "uid-team-a", 7)
    assert not store.put(Kind.POD, adapter("a", version=7))
    assert store.put(Kind.POD, adapter("a", version=8))
    assert not store.remove(Kind.POD, "uid-team-a", 7), "the same end, told late"
    assert store.uids(Kind.POD) == {"uid-team-a"}
    before = store.uids(Kind.POD)
    store.replace(Kind.POD, Listed([], 20), known_before=before)
    assert not store.put(Kind.POD, adapter("a", version=19))
    assert store.put(Kind.POD, adapter("a", version=21))


def test_answer_to_a_write_shows_what_others_changed() -> None:
    store, known = Store(), adapter("a", version=5)
    store.put(Kind.ADAPTER, known)
    status = {**adapter("a", version=6), "status": {"servedName": "a"}}
    assert not store.put_answer(Kind.ADAPTER, status)
    changed = adapter("a", version=8)
    changed["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert store.put_answer(Kind.ADAPTER, changed)
    assert not store.put_answer(Kind.ADAPTER, changed)


def test_list_removes_only_what_was_known_before_it() -> None:
    """What an event brought while the list was on its way is not taken for gone."""
    store = store_of(adapter("old"), adapter("kept"))
    before = store.uids(Kind.ADAPTER)
    store.put(Kind.ADAPTER, adapter("new"))
    store.replace(Kind.ADAPTER, Listed([adapter("kept")], 3), known_before=before)
    assert {b["metadata"]["name"] for b in store.all(Kind.ADAPTER)} == {"kept", "new"}
