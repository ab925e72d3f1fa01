"""The real operator between an API server and pods in memory: whatever happens, it ends where the resources say."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest_asyncio
from support.simulated_fleet import CONFIG, NAMESPACE, Fleet, simulated_fleet, until

from lorafleet_contract.admin import AdapterState, AdminError, Residency
from lorafleet_contract.reasons import Reason
from lorafleet_operator.cluster.store import Kind

THREE = ("french", "german", "roman")


@pytest_asyncio.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with simulated_fleet() as it:
        yield it


async def serving(fleet: Fleet, *names: str, pods: int = 2, **options: int) -> None:
    """A base with pods and adapters, all Ready."""
    fleet.base(replicas=pods)
    for name in names:
        fleet.adapter(name)
    await fleet.operate()
    for _ in range(pods):
        await fleet.pod(**options)
    await until("all ready", lambda: fleet.is_ready(*names) and fleet.base_condition()[0] == "True")


async def test_adapters_become_ready_and_status_says_all(fleet: Fleet) -> None:
    await serving(fleet, *THREE)
    first, second = fleet.pods.values()
    assert first.names() == second.names() == set(THREE)
    assert first.residents() | second.residents() == set(THREE)
    assert not first.residents() & second.residents()

    def base_status() -> dict:
        return fleet.kube.get(Kind.BASE, NAMESPACE, "base")["status"]

    await until("all is counted", lambda: base_status()["adapters"] == {"desired": 3, "ready": 3, "failed": 0})
    status = fleet.status("french")
    assert status["servedName"] == "french"
    assert status["stableRevision"] == status["desiredRevision"] == first.stable("french")
    assert status["artifact"]["digest"].startswith("sha256:" + status["stableRevision"])
    assert status["artifact"]["rank"] == 8
    assert [p["state"] for p in status["placements"]] == ["Ready"]
    assert status["replicas"] == {"desired": 1, "resident": 1}
    assert [h["revision"] for h in status["history"]] == [status["stableRevision"]]
    assert {c["type"]: c["status"] for c in status["conditions"]} == dict.fromkeys(
        ("Accepted", "Available", "Ready", "Resident"), "True"
    )
    assert fleet.kube.get(Kind.ADAPTER, NAMESPACE, "french")["metadata"]["finalizers"] == ["lorafleet.io/unload"]
    base = base_status()
    assert base["capacity"]["assignedAdapterSlots"] == 3
    assert base["replicas"] == base["readyReplicas"] == 2
    await until("an Event for each", lambda: fleet.event_reasons() == ["Ready"] * 4)


async def test_nothing_is_written_when_nothing_changes(fleet: Fleet) -> None:
    """Neither status nor pods, through two resyncs of everything."""
    fleet.base(replicas=1)
    fleet.adapter("french")
    await fleet.operate(replace(CONFIG, resync_seconds=0.3))
    pod = await fleet.pod()
    await until("ready", lambda: fleet.is_ready("french") and fleet.base_condition()[0] == "True")
    await until("an Event for each", lambda: fleet.event_reasons() == ["Ready"] * 2)
    await until(
        "the status is complete",
        lambda: fleet.kube.get(Kind.BASE, NAMESPACE, "base")["status"]["adapters"]["ready"] == 1,
    )
    kept = ("configmaps", "system", "lorafleet-operator-names")
    await until("the name is kept", lambda: "servedName" in fleet.kube.objects[kept]["data"]["bases.json"])
    resync = fleet.health.resync
    assert resync is not None

    async def after_resyncs() -> dict[object, object]:
        """How often the pod was told something, and versions of what the API server has."""
        for _ in range(3):
            await until("a resync", lambda last=resync.last: resync.last > last)
        objects = fleet.kube.objects.items()
        versions = {key: body["metadata"]["resourceVersion"] for key, body in objects if key[0] != "leases"}
        return {**versions, "pod": len(pod.writes)}

    seen = [await after_resyncs()]
    while len(seen) < 20 and seen[-1] not in seen[:-1]:  # what readiness brings with it comes first
        seen.append(await after_resyncs())
    assert seen[-1] == seen[-2]
    assert await after_resyncs() == seen[-1]


async def test_new_revision_is_loaded_beside_and_switched(fleet: Fleet) -> None:
    await serving(fleet, "roman")
    old = fleet.status("roman")["stableRevision"]
    seen: list[tuple[str, int]] = []

    def look(_: str, plural: str, body: dict) -> None:
        if plural == Kind.ADAPTER:
            revisions = min(len({r for n, r in pod.entries if n == "roman"}) for pod in fleet.pods.values())
            seen.append((body["status"].get("stableRevision"), revisions))

    fleet.kube.on_change.append(look)
    fleet.adapter("roman", "roman-v2")
    await until("switched", lambda: fleet.status("roman").get("stableRevision") != old)
    status = fleet.status("roman")
    new = status["stableRevision"]
    assert fleet.condition("roman") == ("True", "Serving")
    assert all(pod.stable("roman") == new for pod in fleet.pods.values())
    assert all((old in {r for _, r in pod.entries}) for pod in fleet.pods.values())
    assert all(num == 2 for revision, num in seen if revision == new)
    switched = asyncio.get_running_loop().time()
    await until("the old one leaves", lambda: all({r for _, r in pod.entries} == {new} for pod in fleet.pods.values()))
    assert asyncio.get_running_loop().time() - switched > 4
    assert [h["revision"] for h in fleet.status("roman")["history"]] == [new, old]


async def test_revision_that_fails_leaves_the_old_one_serving(fleet: Fleet) -> None:
    await serving(fleet, "roman", "french")
    old = fleet.status("roman")["stableRevision"]
    fleet.adapter("roman", "bad-load")
    await until("stalled", lambda: fleet.condition("roman") == ("False", "BaseModelMismatch"))
    assert fleet.condition("roman", "Stalled")[0] == "True"
    assert fleet.condition("roman", "Available") == ("True", "Serving")
    assert fleet.condition("roman", "Reconciling") == ("", "")
    assert fleet.status("roman")["stableRevision"] == old
    assert {pod.stable("roman") for pod in fleet.pods.values()} == {old}
    assert fleet.is_ready("french")
    fleet.adapter("roman", "roman")
    await until("back", lambda: fleet.is_ready("roman"))
    await until(
        "the failed one leaves",
        lambda: all({r for n, r in pod.entries if n == "roman"} == {old} for pod in fleet.pods.values()),
    )


async def test_restarted_pod_is_told_again(fleet: Fleet) -> None:
    """Same pod, another boot: it gets its adapters back, the other pod is left alone."""
    await serving(fleet, *THREE)
    before = {name: pod.residents() for name, pod in fleet.pods.items()}
    told = len(fleet.pods["base-1"].writes)
    fleet.restart("base-0")
    await until("told again", lambda: fleet.pods["base-0"].names() == set(THREE) and fleet.pods["base-0"].is_ready)
    await until("all ready", lambda: fleet.is_ready(*THREE))
    assert {name: pod.residents() for name, pod in fleet.pods.items()} == before
    assert len(fleet.pods["base-1"].writes) == told


async def test_pod_that_goes_moves_only_what_was_on_it(fleet: Fleet) -> None:
    names = [f"a{number}" for number in range(12)]
    await serving(fleet, *names, pods=3)
    before = {name: pod.residents() for name, pod in fleet.pods.items()}
    await fleet.kill("base-1")
    await until("moved", lambda: set().union(*(pod.residents() for pod in fleet.pods.values())) == set(names))
    assert all(before[name] <= pod.residents() for name, pod in fleet.pods.items())
    await until("all ready", lambda: fleet.is_ready(*names))

    def listed() -> set[str]:
        return {p["pod"] for name in names for p in fleet.status(name)["placements"]}

    await until("listed no more", lambda: listed() == {"base-0", "base-2"})


async def test_new_operator_takes_over_without_a_change(fleet: Fleet) -> None:
    """A new leader tells pods everything under its fence; no status changes, nothing is removed."""
    await serving(fleet, *THREE)
    first = fleet.operators[0]
    fences = {pod.fence for pod in fleet.pods.values()}
    await fleet.end(first)
    versions = {
        name: fleet.kube.get(Kind.ADAPTER, NAMESPACE, name)["metadata"]["resourceVersion"]
        for name in ("french", "roman")
    }
    fleet.adapter("dutch")
    fleet.delete("german")
    await fleet.operate()
    await until("taken over", lambda: fleet.is_ready("dutch") and fleet.is_gone("german"))
    assert all(pod.fence > max(fences) for pod in fleet.pods.values())
    for name, version in versions.items():
        assert fleet.kube.get(Kind.ADAPTER, NAMESPACE, name)["metadata"]["resourceVersion"] == version
    assert all(pod.names() == {"french", "roman", "dutch"} for pod in fleet.pods.values())


async def test_paused_leader_cannot_write(fleet: Fleet) -> None:
    """A pod that has heard a later leader refuses an earlier one, which then finds that it leads no more."""
    await serving(fleet, "french")
    pod = fleet.pods["base-0"]
    lease = fleet.kube.get("leases", "system", CONFIG.lease)
    fleet.kube.put("leases", {**lease, "spec": {**lease["spec"], "holderIdentity": "somebody", "leaseTransitions": 9}})
    pod.fence = 9
    pod.entries.clear()
    pod._bump()
    with contextlib.suppress(Exception):
        await asyncio.wait_for(asyncio.shield(fleet.operators[0]), 1)
    assert pod.entries == {}
    assert pod.fence == 9


async def test_deleted_lease_is_no_reason_to_stop(fleet: Fleet) -> None:
    """Pods know a fence above that of a Lease that was made anew: the leader goes above it."""
    await serving(fleet, "french")
    for pod in fleet.pods.values():
        pod.fence = 41
    fleet.adapter("german")
    await until("ready", lambda: fleet.is_ready("french", "german"))
    assert {pod.fence for pod in fleet.pods.values()} == {42}


async def test_silent_pod_holds_up_nobody_and_loses_nothing(fleet: Fleet) -> None:
    await serving(fleet, "french", "german")
    silent = fleet.pods["base-0"]
    held = silent.residents()
    silent.hang()
    fleet.adapter("dutch")
    await until("the other pod answers", lambda: fleet.is_ready("dutch"))
    assert fleet.pods["base-1"].residents() >= {"dutch"}
    fleet.delete("french")
    await until("the other pod has forgotten", lambda: "french" not in fleet.pods["base-1"].names())
    assert not fleet.is_gone("french")
    silent.wake()
    await until("unloaded", lambda: fleet.is_gone("french"))
    await until("it has caught up", lambda: silent.names() == {"german", "dutch"})
    assert silent.residents() >= held - {"french"}


async def test_deletion_drains_first(fleet: Fleet) -> None:
    await serving(fleet, "french", "german")
    for pod in fleet.pods.values():
        pod.drain_seconds = 0.6
    fleet.delete("french")
    await until("draining", lambda: fleet.condition("french") == ("False", "Draining"))
    assert all(
        e.state is AdapterState.DRAINING
        for p in fleet.pods.values()
        for (n, _), e in p.entries.items()
        if n == "french"
    )
    await until("gone", lambda: fleet.is_gone("french"))
    assert all(pod.names() == {"german"} for pod in fleet.pods.values())


async def test_base_may_go_before_its_adapters(fleet: Fleet) -> None:
    await serving(fleet, "french", "german")
    fleet.kube.delete(Kind.BASE, NAMESPACE, "base")
    fleet.delete("french")
    await until("released", lambda: fleet.is_gone("french"))
    await until("the other one waits", lambda: fleet.condition("german") == ("False", "BaseNotFound"))
    assert fleet.condition("german", "Reconciling")[0] == "True"
    fleet.delete("german")
    await until("released too", lambda: fleet.is_gone("german"))


async def test_permanent_and_retryable_resolve_errors(fleet: Fleet) -> None:
    fleet.library.failures["late"] = AdminError(reason=Reason.SOURCE_UNAVAILABLE, message="no route", retryable=True)
    fleet.base()
    await fleet.operate()
    await fleet.pod()
    for name, path in {"a": "missing", "b": "pickle", "c": "late", "d": "wide-r128", "e": "fine"}.items():
        fleet.adapter(name, path)
    fleet.adapter("f", "fine", digest="sha256:" + "0" * 64)
    expected = {
        "a": "ArtifactNotFound",
        "b": "UnsafeFormat",
        "c": "SourceUnavailable",
        "d": "RankTooHigh",
        "f": "DigestMismatch",
    }
    for name, reason in expected.items():
        await until(name, lambda name=name, reason=reason: fleet.condition(name) == ("False", reason))
        assert fleet.condition(name, "Stalled")[0] == ("" if name == "c" else "True")
        assert fleet.condition(name, "Reconciling")[0] == ("True" if name == "c" else "")
        assert fleet.condition(name, "Accepted")[0] == ("Unknown" if name == "c" else "False")
    await until("ready", lambda: fleet.is_ready("e"))
    del fleet.library.failures["late"]
    await until("ready later", lambda: fleet.is_ready("c"))
    assert fleet.pods["base-0"].names() == {"c", "e"}


async def test_failed_load_is_tried_again_by_the_pod(fleet: Fleet) -> None:
    """In its own time, which grows: resyncs tell it nothing."""
    fleet.library.load_failures["french"] = Reason.DISK_FULL
    fleet.base()
    fleet.adapter("french")
    await fleet.operate(replace(CONFIG, resync_seconds=0.2))
    pod = await fleet.pod()
    await until("failed", lambda: fleet.condition("french") == ("False", "DiskFull"))
    assert fleet.condition("french", "Reconciling")[0] == "True"
    told, last = len(pod.writes), fleet.health.resync.last
    await until("two resyncs", lambda: fleet.health.resync.last > last + 0.4)
    assert len(pod.writes) == told
    fleet.library.load_failures.clear()
    await until("ready", lambda: fleet.is_ready("french"))
    assert len(pod.writes) == told


async def test_one_pod_that_cannot_load_does_not_take_readiness_away(fleet: Fleet) -> None:
    await serving(fleet, "french")
    fleet.library.load_failures["french"] = Reason.OUT_OF_MEMORY
    await fleet.pod()
    pod = fleet.pods["base-2"]
    await until("it has failed there", lambda: any(e.state is AdapterState.FAILED for e in pod.entries.values()))
    await until("status says so", lambda: any(p["state"] == "Failed" for p in fleet.status("french")["placements"]))

    def message() -> str:
        assert fleet.condition("french") == ("True", "Serving")
        return str(next(c for c in fleet.status("french")["conditions"] if c["type"] == "Ready")["message"])

    await until("the message names it", lambda: "base-2: OutOfMemory" in message())


async def test_oldest_has_the_name(fleet: Fleet) -> None:
    fleet.base()
    await fleet.operate()
    await fleet.pod()
    fleet.adapter("second", servedName="french", created="2026-02-01T00:00:00Z")
    fleet.adapter("first", servedName="french", created="2026-01-01T00:00:00Z")
    fleet.adapter("like-base", servedName="base", created="2099-01-01T00:00:00Z")
    await until("winner", lambda: fleet.is_ready("first"))
    await until("loser", lambda: fleet.condition("second") == ("False", "NameConflict"))
    await until("a base has its name too", lambda: fleet.condition("like-base") == ("False", "NameConflict"))
    assert "servedName" not in fleet.status("second")
    fleet.delete("first")
    await until("the name is free", lambda: fleet.is_ready("second"))
    assert fleet.pods["base-0"].stable("french") == fleet.status("second")["stableRevision"]


async def test_recreated_adapter_gets_its_name_back(fleet: Fleet) -> None:
    """Another team's adapter has waited for the name, and a new operator knows no more than the API server."""
    fleet.base(allowedNamespaces=["friends"])
    operator = await fleet.operate()
    await fleet.pod()
    fleet.adapter("dup", created="2026-01-01T00:00:00Z")
    await until("ours", lambda: fleet.is_ready("dup"))
    theirs = {"namespace": "friends", "base": {"name": "base", "namespace": NAMESPACE}}
    fleet.adapter("dup", "other", created="2026-02-01T00:00:00Z", **theirs)
    await until("theirs waits", lambda: fleet.condition("dup", namespace="friends") == ("False", "NameConflict"))
    fleet.delete("dup")
    await until("gone", lambda: fleet.is_gone("dup"))
    await fleet.end(operator)
    await fleet.operate()
    fleet.adapter("dup", created="2026-03-01T00:00:00Z")
    await until("ours again", lambda: fleet.is_ready("dup"))
    assert fleet.condition("dup", namespace="friends") == ("False", "NameConflict")
    assert "stableRevision" not in fleet.status("dup", namespace="friends")


async def test_guests_do_not_push_out_the_owner(fleet: Fleet) -> None:
    """Pins and the highest priority of another namespace count for nothing where the base does not allow them."""
    fleet.base(allowedNamespaces=["friends"])
    fleet.adapter("own")
    await fleet.operate()
    pod = await fleet.pod(slots=1)
    await until("own", lambda: fleet.is_ready("own"))
    greedy = {"mode": "All", "pin": True, "priority": 2**31 - 1}
    theirs = {"namespace": "friends", "base": {"name": "base", "namespace": NAMESPACE}}
    fleet.adapter("guest", placement=greedy, **theirs)
    await until("refused", lambda: fleet.condition("guest", namespace="friends") == ("False", "GuestNotAllowed"))
    assert pod.residents() == {"own"}


async def test_only_declared_sources_and_allowed_namespaces(fleet: Fleet) -> None:
    fleet.base(allowedNamespaces=["friends"])
    await fleet.operate()
    pod = await fleet.pod()
    fleet.adapter("a", source={"name": "elsewhere", "path": "x"})
    fleet.adapter("b", source={"name": "hub", "repo": "other/x"})
    fleet.adapter("c", source={"name": "hub", "repo": "acme/x", "revision": "main"})
    fleet.adapter("d", namespace="friends", base={"name": "base", "namespace": NAMESPACE})
    fleet.adapter("e", namespace="strangers", base={"name": "base", "namespace": NAMESPACE})
    await until("c", lambda: fleet.is_ready("c"))
    assert len(fleet.status("c")["artifact"]["resolvedRevision"]) == 40
    await until("d", lambda: fleet.condition("d", namespace="friends")[0] == "True")
    await until("a", lambda: fleet.condition("a") == ("False", "SourceNotAllowed"))
    await until("b", lambda: fleet.condition("b") == ("False", "SourceNotAllowed"))
    await until("e", lambda: fleet.condition("e", namespace="strangers") == ("False", "BaseNotAllowed"))
    assert pod.names() == {"c", "d"}
    assert pod.num_resolved == 2


async def test_suspended_adapter_stays_as_it_is(fleet: Fleet) -> None:
    await serving(fleet, "french")
    old = fleet.status("french")["stableRevision"]
    fleet.adapter("french", "french-v2", suspend=True)
    await until("suspended", lambda: fleet.condition("french") == ("False", "Suspended"))
    assert fleet.condition("french", "Reconciling") == fleet.condition("french", "Stalled") == ("", "")
    assert fleet.condition("french", "Available")[0] == "True"
    assert all({r for _, r in pod.entries} == {old} for pod in fleet.pods.values())
    fleet.adapter("french", "french-v2")
    await until("acted on", lambda: fleet.is_ready("french") and fleet.status("french")["stableRevision"] != old)


async def test_local_adapters_are_let_be(fleet: Fleet) -> None:
    """One of `serve --adapter`, even of the same name, is never touched, and its room is not given away."""
    fleet.base()
    await fleet.operate()
    pod = await fleet.pod(slots=2)
    pod.add_local("mine", "mine")
    pod.add_local("french", "other-french")
    fleet.adapter("french")
    fleet.adapter("german")
    await until("german is known", lambda: "german" in pod.names())
    await until("no room", lambda: fleet.condition("german", "Resident") == ("False", "InsufficientSlots"))
    await until("ready by demand", lambda: fleet.is_ready("german"))
    assert pod.residents() == {"mine", "french"}


async def test_what_does_not_fit_is_said_and_priority_decides(fleet: Fleet) -> None:
    fleet.base(replicas=2)
    names = [f"a{number}" for number in range(6)]
    for name in names:
        fleet.adapter(name)
    await fleet.operate()
    first, second = await fleet.pod(slots=2), await fleet.pod(slots=2)
    await until("ready by demand", lambda: fleet.is_ready(*names))
    without = {name for name in names if fleet.condition(name, "Resident")[1] == "InsufficientSlots"}
    assert len(without) == 2
    assert first.residents() | second.residents() == set(names) - without
    fleet.adapter("urgent", placement={"mode": "All", "priority": 5, "pin": True})
    await until("urgent", lambda: fleet.condition("urgent", "Resident")[0] == "True")
    assert "urgent" in first.residents()
    assert "urgent" in second.residents()
    assert all(e.entry.pinned for p in (first, second) for (n, _), e in p.entries.items() if n == "urgent")
    assert len(first.residents()) == len(second.residents()) == 2


async def test_on_demand_is_known_and_not_resident(fleet: Fleet) -> None:
    await serving(fleet, "french")
    fleet.adapter("rare", placement={"mode": "OnDemand"})
    await until("ready", lambda: fleet.is_ready("rare"))
    assert fleet.condition("rare", "Resident")[0] == "True"
    assert fleet.status("rare")["placements"] == []
    assert all(
        e.entry.residency is Residency.ON_DEMAND
        for p in fleet.pods.values()
        for (n, _), e in p.entries.items()
        if n == "rare"
    )


async def test_without_on_demand_what_does_not_fit_is_stalled(fleet: Fleet) -> None:
    fleet.base(lora={"loadOnDemand": "Disabled"})
    fleet.adapter("a")
    fleet.adapter("b")
    fleet.adapter("c", placement={"mode": "OnDemand"})
    await fleet.operate()
    pod = await fleet.pod(slots=1)
    pod.load_on_demand = False
    await until(
        "one fits",
        lambda: sorted(fleet.condition(n) for n in "ab") == [("False", "InsufficientSlots"), ("True", "Serving")],
    )
    await until("c cannot be", lambda: fleet.condition("c") == ("False", "InvalidSpec"))
    loser = next(name for name in "ab" if fleet.condition(name)[0] == "False")
    assert fleet.condition(loser, "Stalled")[0] == "True"


async def test_lost_events_are_made_up_for(fleet: Fleet) -> None:
    fleet.base()
    fleet.adapter("french")
    fleet.adapter("german")
    await fleet.operate(replace(CONFIG, resync_seconds=0.5))
    await fleet.pod()
    await until("ready", lambda: fleet.is_ready("french", "german"))
    with fleet.deaf():
        fleet.delete("french")
        fleet.adapter("dutch")
        await until("noticed", lambda: fleet.is_gone("french") and fleet.is_ready("dutch"))


async def test_orphans_leave_after_everything_was_listed_twice(fleet: Fleet) -> None:
    """An adapter whose finalizer somebody took off by force: pods forget it, but not on one list's word."""
    await serving(fleet, "french", "german")
    await fleet.end(fleet.operators[0])
    body = fleet.kube.get(Kind.ADAPTER, NAMESPACE, "french")
    body["metadata"]["finalizers"] = []
    fleet.delete("french")
    pods = list(fleet.pods.values())
    await fleet.operate(replace(CONFIG, resync_seconds=2.0))
    await until("forgotten", lambda: all(pod.names() == {"german"} for pod in pods))
    first = [next(write for write in pod.writes if write.fence == 2) for pod in pods]
    assert [write.removed for write in first] == [[], []]


async def test_api_server_may_be_away(fleet: Fleet) -> None:
    await serving(fleet, "french")
    fleet.kube.is_away = True
    fleet.adapter("german")
    fleet.restart("base-0")
    await until("restart is noticed", lambda: fleet.pods["base-0"].fence == 0)
    await asyncio.sleep(0.3)
    assert not fleet.is_ready("german")
    fleet.kube.is_away = False
    await until("ready", lambda: fleet.is_ready("french", "german") and fleet.pods["base-0"].is_ready)


async def test_object_of_somebody_else_is_not_taken(fleet: Fleet) -> None:
    fleet.kube.put(
        "services",
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "base", "namespace": NAMESPACE},
            "spec": {"mine": True},
        },
    )
    fleet.base()
    await fleet.operate()
    await until("refused", lambda: fleet.base_condition() == ("False", "ApplyFailed"))
    assert fleet.base_condition("Stalled")[0] == "True"
    assert fleet.kube.get("services", NAMESPACE, "base")["spec"] == {"mine": True}
    fleet.kube.delete("services", NAMESPACE, "base")
    fleet.base(replicas=1, drain={"timeoutSeconds": 9})
    await until("applied", lambda: "selector" in (fleet.kube.find("services", NAMESPACE, "base") or {}).get("spec", {}))


async def test_unreadable_resource_says_so_and_disturbs_nobody(fleet: Fleet) -> None:
    """As after a definition that was loosened by hand."""
    await serving(fleet, "french")
    fleet.adapter("odd", source={"name": "models"})
    fleet.adapter("german")
    await until("said", lambda: fleet.condition("odd") == ("False", "InvalidSpec"))
    await until("others go on", lambda: fleet.is_ready("french", "german"))
    fleet.delete("odd")
    assert fleet.is_gone("odd")


async def test_spec_is_never_written(fleet: Fleet) -> None:
    fleet.base(replicas=1)
    fleet.adapter("french")
    specs = [
        fleet.kube.get(kind, NAMESPACE, name)["spec"] for kind, name in ((Kind.BASE, "base"), (Kind.ADAPTER, "french"))
    ]
    await fleet.operate()
    await fleet.pod()
    await until("ready", lambda: fleet.is_ready("french"))
    assert specs == [
        fleet.kube.get(kind, NAMESPACE, name)["spec"] for kind, name in ((Kind.BASE, "base"), (Kind.ADAPTER, "french"))
    ]
    paths = {w for w in fleet.kube.writes if "lorafleet.io" in w}
    assert {p.rsplit("/", 1)[-1] for p in paths} == {"status", "french"}


async def test_many_adapters_at_once_cost_few_writes(fleet: Fleet) -> None:
    """A finalizer, an Event and about one status each; pods are told of them together."""
    names = [f"a{number:03d}" for number in range(100)]
    fleet.base()
    await fleet.operate()
    pod = await fleet.pod(slots=100)
    await until("base", lambda: fleet.base_condition()[0] == "True")
    before, told = len(fleet.kube.writes), len(pod.writes)
    for name in names:
        fleet.adapter(name)
    await until("all ready", lambda: fleet.is_ready(*names))
    statuses = [
        write for write in fleet.kube.writes[before:] if "/loraadapters/" in write and write.endswith("/status")
    ]
    assert len(statuses) <= 2 * len(names)
    assert len(pod.writes) - told <= 20
    assert pod.num_resolved == len(names)
