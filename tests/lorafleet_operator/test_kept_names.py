"""The served name of a base that is deleted is not handed to another namespace unasked, nor are those of its adapters."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
import pytest_asyncio
from support.fake_kube import Refused
from support.operator_views import NOW
from support.operator_views import base as base_view
from support.simulated_fleet import BASE, CONFIG, NAMESPACE, SYSTEM, Fleet, simulated_fleet, until

from lorafleet_common.kube.errors import KubeUnavailable
from lorafleet_contract.names import ANNOTATION_RELEASE_NAME
from lorafleet_contract.resources import BaseModelResource, ReservedName
from lorafleet_operator.act.kept_names import FIELD, KeptNames
from lorafleet_operator.cluster.store import Kind, Store
from lorafleet_operator.cluster.writes import Writes
from lorafleet_operator.decide.kept_names import MAX_KEPT, KeptBase, kept_after, reserved_by
from lorafleet_operator.decide.names import RESERVED

FAST = replace(CONFIG, resync_seconds=1)
OTHER = "other-team"
OWNED = ("deployments", "services", "poddisruptionbudgets")
KEY = (NAMESPACE, BASE)


@pytest_asyncio.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with simulated_fleet() as it:
        yield it


def base(*, ready: int = 1, annotations: dict[str, str] | None = None) -> BaseModelResource:
    made = base_view()
    reserved = [ReservedName(name="french", namespace="guests", until=NOW + timedelta(hours=1))]
    status = {"served_name": "base", "ready_replicas": ready, "reserved_names": reserved}
    metadata = made.metadata.model_copy(update={"annotations": annotations or {}})
    return made.model_copy(update={"metadata": metadata, "status": made.status.model_copy(update=status)})


def test_base_that_is_gone_leaves_its_names_reserved_for_a_day() -> None:
    kept = kept_after({}, [base()], NOW)
    assert list(reserved_by(kept, {KEY}, NOW)) == [], "while it is there its status says what is reserved"
    at_once = {entry.name: entry for entry in reserved_by(kept, (), NOW)}
    assert at_once.keys() == {"base", "french"}
    later = kept_after(kept, [], NOW + timedelta(minutes=1))
    found = {entry.name: entry for entry in reserved_by(later, (), NOW + timedelta(minutes=2))}
    assert (found["base"].namespace, found["base"].until) == ("team", NOW + timedelta(minutes=1) + RESERVED)
    assert found["french"].namespace == "guests"
    assert [e.name for e in reserved_by(later, (), NOW + timedelta(hours=2))] == ["base"]
    assert kept_after(later, [], NOW + timedelta(hours=25)) == {}


def test_base_that_never_served_leaves_nothing() -> None:
    kept = kept_after({}, [base(ready=0)], NOW)
    assert "base" not in {entry.name for entry in reserved_by(kept, (), NOW)}


def test_base_that_has_served_keeps_its_name_without_pods() -> None:
    kept = kept_after(kept_after({}, [base()], NOW), [base(ready=0)], NOW)
    assert "base" in {entry.name for entry in reserved_by(kept, (), NOW)}


def test_annotation_hands_the_name_of_a_base_over() -> None:
    kept = kept_after({}, [base()], NOW)
    kept = kept_after(kept, [base(annotations={ANNOTATION_RELEASE_NAME: "true"})], NOW)
    assert "base" not in {entry.name for entry in reserved_by(kept, (), NOW)}


def test_base_that_comes_back_finds_what_the_last_one_left() -> None:
    """Its name is older than those that wait for it, and the deleted adapters' names are not lost with the old status."""
    gone = kept_after(kept_after({}, [base()], NOW), [], NOW)
    later = NOW + timedelta(minutes=5)
    new = base_view()
    back = kept_after(gone, [new], later)
    for kept in (gone, back):
        assert {entry.name for entry in reserved_by(kept, {KEY}, later)} == {"base", "french"}
    assert list(reserved_by(back, {KEY}, NOW + RESERVED)) == []
    served = kept_after(back, [base()], later)
    again = kept_after(served, [], later)
    assert {entry.name: entry.until for entry in reserved_by(again, (), later)}["base"] == later + RESERVED
    released = base_view()
    annotated = released.metadata.model_copy(update={"annotations": {ANNOTATION_RELEASE_NAME: "true"}})
    released = released.model_copy(update={"metadata": annotated})
    assert [entry.name for entry in reserved_by(kept_after(back, [released], later), {KEY}, later)] == ["french"]


def left(number: int) -> KeptBase:
    """What a base left that was deleted so many seconds ago."""
    return KeptBase(
        namespace="team", name=f"b{number}", served_name=f"b{number}", gone_at=NOW - timedelta(seconds=number)
    )


def test_names_that_have_been_free_for_the_longest_are_forgotten_first() -> None:
    before = {one.key: one for one in map(left, range(MAX_KEPT + 2))}
    after = kept_after(before, [], NOW)
    assert before.keys() - after.keys() == {("team", f"b{MAX_KEPT}"), ("team", f"b{MAX_KEPT + 1}")}
    beside = kept_after(before, [base()], NOW)
    assert len(beside) == MAX_KEPT
    assert KEY in beside


def test_bases_that_are_there_are_all_remembered_and_the_last_one_that_has_gone() -> None:
    one = base()
    names = [f"there-{number}" for number in range(MAX_KEPT + 1)]
    there = [one.model_copy(update={"metadata": one.metadata.model_copy(update={"name": name})}) for name in names]
    after = kept_after({kept.key: kept for kept in map(left, range(3))}, there, NOW)
    assert after.keys() == {(NAMESPACE, name) for name in names} | {("team", "b0")}


def test_base_that_came_back_and_is_gone_again_is_reserved_once_for_a_day() -> None:
    """Further passes do not begin the day anew."""
    kept = kept_after(kept_after({}, [base()], NOW), [], NOW)
    kept = kept_after(kept, [base()], NOW + timedelta(minutes=1))
    for minutes in (2, 3, 4):
        kept = kept_after(kept, [], NOW + timedelta(minutes=minutes))
    until = {entry.name: entry.until for entry in reserved_by(kept, (), NOW)}["base"]
    assert until == NOW + timedelta(minutes=2) + RESERVED


def test_base_whose_predecessor_is_forgotten_says_itself_what_is_reserved() -> None:
    old = KeptBase(namespace=NAMESPACE, name=BASE, served_name="base", gone_at=NOW - RESERVED)
    new = base()
    new = new.model_copy(update={"status": new.status.model_copy(update={"observed_generation": 1})})
    kept = kept_after({KEY: old}, [new], NOW)
    assert list(reserved_by(kept, {KEY}, NOW)) == []


def test_reservation_ends_on_the_second() -> None:
    kept = left(0).model_copy(update={"reserved": [ReservedName(name="a", namespace="guests", until=NOW)]})
    assert [entry.name for entry in kept.names(NOW - timedelta(seconds=1))] == ["a", "b0"]
    assert [entry.name for entry in kept.names(NOW)] == ["b0"]
    assert list(kept.names(NOW + RESERVED)) == []


def kept_in(fleet: Fleet, text: str | None = None) -> str:
    """Return what the ConfigMap says; `text` is written first."""
    if text is not None:
        metadata = {"name": CONFIG.names, "namespace": SYSTEM}
        fleet.kube.put("configmaps", {"apiVersion": "v1", "metadata": metadata, "data": {FIELD: text}})
    return str(fleet.kube.get("configmaps", SYSTEM, CONFIG.names)["data"][FIELD])


def names_of(fleet: Fleet) -> tuple[KeptNames, Store]:
    store = Store()
    store.put(Kind.BASE, {**base().model_dump(mode="json", by_alias=True), "kind": "BaseModelDeployment"})
    return KeptNames(
        fleet.api, Writes(fleet.api, lambda: True), store, namespace=SYSTEM, name=CONFIG.names, now=lambda: NOW
    ), store


GONE = {"namespace": "guests", "name": "gone", "servedName": "gone", "goneAt": NOW.isoformat()}


async def test_names_that_could_not_be_read_are_not_written_over(fleet: Fleet) -> None:
    """Neither while the API server is away, which is waited for, nor while they are refused."""
    before = kept_in(fleet, json.dumps([GONE]))
    names, store = names_of(fleet)
    fleet.kube.is_away = True
    with pytest.raises(KubeUnavailable):
        await names.load()
    fleet.kube.is_away = False
    fleet.kube.before = refuse_reads
    await names.load()
    await names.keep()
    assert kept_in(fleet) == before
    fleet.kube.before = None
    await names.keep()
    assert {entry["name"] for entry in json.loads(kept_in(fleet))} == {"gone", BASE}
    assert {entry.name for entry in reserved_by(store.kept_bases, {KEY}, NOW)} == {"gone"}


def refuse_reads(method: str, path: str) -> None:
    if method == "GET" and path.endswith(CONFIG.names):
        raise Refused(403, "Forbidden")


async def test_name_that_another_version_kept_costs_no_other(fleet: Fleet) -> None:
    entry = {"name": "french", "namespace": "guests", "until": (NOW + RESERVED).isoformat(), "fieldOfLater": 1}
    later = {**GONE, "fieldOfLater": 1, "reserved": [entry]}
    kept_in(fleet, json.dumps([{"of": "another kind"}, later]))
    names, store = names_of(fleet)
    await names.load()
    assert {one.name for one in reserved_by(store.kept_bases, (), NOW)} == {"gone", "french"}


async def test_what_is_no_list_of_names_is_begun_anew(fleet: Fleet) -> None:
    kept_in(fleet, "{}")
    names, _ = names_of(fleet)
    await names.load()
    await names.keep()
    assert [entry["name"] for entry in json.loads(kept_in(fleet))] == [BASE]


async def test_name_of_a_deleted_base_waits_for_its_namespace(fleet: Fleet) -> None:
    """Also over a restart of the operator."""
    fleet.base()
    await fleet.operate(FAST)
    await fleet.pod()
    await until("ready", lambda: fleet.base_condition()[0] == "True")
    await until("kept", lambda: "servedName" in str(fleet.kube.find("configmaps", SYSTEM, CONFIG.names)))
    await fleet.kill("base-0")
    fleet.kube.delete(Kind.BASE, NAMESPACE, BASE)
    for owned in [key for key in fleet.kube.objects if key[0] in OWNED and key[1] == NAMESPACE]:
        fleet.kube.delete(*owned)  # as the garbage collector does
    await fleet.end(fleet.operators[0])
    fleet.base(namespace=OTHER, created="2026-01-01T00:00:00Z")
    await fleet.operate(FAST)

    def accepted(namespace: str) -> tuple[str, str]:
        conditions = fleet.kube.get(Kind.BASE, namespace, BASE)["status"]["conditions"]
        return next(((c["status"], c["reason"]) for c in conditions if c["type"] == "Accepted"), ("", ""))

    await until("refused", lambda: accepted(OTHER) == ("False", "NameConflict"))
    fleet.base()
    await until("its own, though the other is older", lambda: accepted(NAMESPACE) == ("True", "Accepted"))
    assert accepted(OTHER) == ("False", "NameConflict")
