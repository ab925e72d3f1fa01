"""What a pass costs with many pods and adapters: counted, because a time says something of the machine as well."""

import cProfile
import pstats

from support import operator_views as v

from lorafleet_contract.admin import Residency
from lorafleet_contract.resources import AdapterStatus, PlacementStatus
from lorafleet_operator.cluster.collect import claims_of, snapshot_of
from lorafleet_operator.cluster.store import Kind, Store
from lorafleet_operator.decide.adapter_status import adapter_status
from lorafleet_operator.decide.plan import changes_of, plan_of
from lorafleet_operator.decide.views import ObservedPod, Snapshot

MAX_CALLS = 90
"""Function calls of a pass for each adapter on each pod; there were over 200."""


def fleet(num_pods: int, num_adapters: int) -> tuple[Snapshot, list[ObservedPod]]:
    """A base whose pods have what they should."""
    names = [f"adapter-{number:03}" for number in range(num_adapters)]
    snapshot = v.snapshot(*(v.adapter(name, status=v.served(name)) for name in names), base=v.base())
    pods = [v.pod(f"p{number:02}") for number in range(num_pods)]
    placed = plan_of(snapshot, [v.seen(pod=pod, slots=64, rank_pages=512) for pod in pods], {}).placement.pods

    def residency(name: str, uid: str) -> Residency:
        return Residency.RESIDENT if uid in placed[name] else Residency.ON_DEMAND

    told = [
        v.seen(
            *(v.entry(name, name, residency=residency(name, pod.uid)) for name in names),
            pod=pod,
            slots=64,
            rank_pages=512,
        )
        for pod in pods
    ]
    return snapshot, told


def one_pass(snapshot: Snapshot, pods: list[ObservedPod]) -> None:
    plan = plan_of(snapshot, pods, {})
    assert changes_of(plan, snapshot, pods, fence=1) == []
    for lineup in plan.lineups:
        adapter_status(lineup, pods, plan.placement, now=v.NOW)


def num_calls(num_pods: int, num_adapters: int) -> int:
    snapshot, pods = fleet(num_pods, num_adapters)
    profile = cProfile.Profile()
    profile.runcall(one_pass, snapshot, pods)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def test_a_pass_costs_a_bounded_number_of_steps_for_each_adapter_on_each_pod() -> None:
    small, large = num_calls(10, 60), num_calls(20, 120)
    assert large / (20 * 120) < MAX_CALLS
    assert large < 4.4 * small, "no faster than pods times adapters"


def test_an_entry_is_made_once_for_all_pods_that_are_told_the_same() -> None:
    snapshot, _ = fleet(3, 4)
    new = [v.seen(pod=v.pod(f"p{number:02}"), fence=0) for number in range(3)]
    plan = plan_of(snapshot, new, {})
    entries = [entry for change in changes_of(plan, snapshot, new, fence=1) for entry in change.entries]
    assert len(entries) == 12
    assert len({id(entry) for entry in entries}) == 8, "resident on one pod, on demand on the two others"


def test_a_resource_is_read_once_a_version() -> None:
    store = Store()
    body = v.adapter().model_dump(mode="json", by_alias=True, exclude_none=True)

    def put(version: int) -> None:
        metadata = {**body["metadata"], "resourceVersion": str(version)}
        assert store.put(Kind.ADAPTER, {**body, "metadata": metadata})

    def read() -> object:
        return snapshot_of(store, v.KEY, v.NOW).adapters[0]

    put(1)
    first = read()
    assert read() is first
    put(2)
    assert read() is not first
    assert read() == first.model_copy(  # type: ignore[attr-defined]
        update={"metadata": first.metadata.model_copy(update={"resource_version": "2"})}  # type: ignore[attr-defined]
    )


def test_who_has_which_name_is_found_anew_only_where_something_of_it_has_changed() -> None:
    store, version = Store(), 0

    def put(name: str, served: str, *, status: dict[str, object] | None = None) -> None:
        nonlocal version
        version += 1
        body = v.adapter(name, servedName=served).model_dump(mode="json", by_alias=True, exclude_none=True)
        metadata = {**body["metadata"], "resourceVersion": str(version)}
        assert store.put(Kind.ADAPTER, {**body, "metadata": metadata, "status": status or {}})

    base = v.base().model_dump(mode="json", by_alias=True, exclude_none=True)
    store.put(Kind.BASE, {**base, "metadata": {**base["metadata"], "resourceVersion": "1"}})
    put("one", "a")
    first = claims_of(store, v.NOW)
    assert {name: claim.uid for name, claim in first.items()} == {"base": "uid-base", "a": "uid-one"}
    put("one", "a", status={"observedGeneration": 2})
    assert claims_of(store, v.NOW) is first
    put("one", "b")
    assert {name: claim.uid for name, claim in claims_of(store, v.NOW).items()} == {"base": "uid-base", "b": "uid-one"}
    put("two", "b")
    put("three", "c")
    found = {name: claim.uid for name, claim in claims_of(store, v.NOW).items()}
    assert found == {"base": "uid-base", "b": "uid-one", "c": "uid-three"}
    store.remove(Kind.ADAPTER, "uid-one", version + 1)
    assert claims_of(store, v.NOW)["b"].uid == "uid-two"


def test_placements_take_no_set_of_fields_each() -> None:
    given = {"pod": "p0", "podUid": "uid-p0", "revision": "0" * 12, "state": "Ready"}
    read = [AdapterStatus.model_validate({"placements": [given]}).placements[0] for _ in range(2)]
    made = PlacementStatus(pod="p0", pod_uid="uid-p0", revision="0" * 12, state="Ready")
    assert read[0] == read[1] == made
    assert read[0].model_fields_set is read[1].model_fields_set is made.model_fields_set
    assert made.model_dump(by_alias=True, exclude_none=True) == given
