"""The real operator where something goes wrong: answers before events, silent pods, refused writes, lying pods."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from support.fake_kube import Refused
from support.leftovers import left_over
from support.simulated_fleet import CONFIG, NAMESPACE, Fleet, settled, simulated_fleet, until

from lorafleet_contract.admin import AdminError
from lorafleet_contract.names import ANNOTATION_RETRY
from lorafleet_contract.reasons import Reason
from lorafleet_operator.act.admin_client import WRITE_SECONDS
from lorafleet_operator.cluster.store import Kind


@pytest_asyncio.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with simulated_fleet() as it:
        yield it


async def serving(fleet: Fleet, *names: str, pods: int = 2) -> None:
    """A base with pods and adapters, all Ready."""
    fleet.base(replicas=pods)
    for name in names:
        fleet.adapter(name)
    await fleet.operate()
    for _ in range(pods):
        await fleet.pod()
    await until("all ready", lambda: fleet.is_ready(*names) and fleet.base_condition()[0] == "True")


def once(matches: Callable[[str, str], bool], act: Callable[[], None]) -> Callable[[str, str], None]:
    """Do something before the first request that matches."""
    left = [act]

    def before(verb: str, path: str) -> None:
        if left and matches(verb, path):
            left.pop()()

    return before


def annotate(fleet: Fleet, kind: Kind, name: str, value: str) -> None:
    body = fleet.kube.get(kind, NAMESPACE, name)
    fleet.kube.put(kind, {**body, "metadata": {**body["metadata"], "annotations": {ANNOTATION_RETRY: value}}})


@pytest.mark.parametrize("event_seconds", [0.0, 0.05])
async def test_deletion_just_before_a_status_write_is_noticed(fleet: Fleet, event_seconds: float) -> None:
    """It comes back in the answer to that write, and its own event is no news any more."""
    await serving(fleet, "french", "german")
    await settled(fleet, quiet_seconds=1.2)  # nothing else is to wake the base: some things wait for a second
    fleet.event_seconds = event_seconds
    fleet.kube.before = once(
        lambda verb, path: verb == "PATCH" and path.endswith("/french/status"), lambda: fleet.delete("french")
    )
    fleet.adapter("french", unload={"drainTimeoutSeconds": 9})  # a new generation, and nothing to tell pods
    await until("gone", lambda: fleet.is_gone("french"))


async def test_change_just_before_a_status_write_is_noticed(fleet: Fleet) -> None:
    await serving(fleet, "french", "german")
    await settled(fleet, quiet_seconds=1.2)
    fleet.event_seconds = 0.05
    fleet.kube.before = once(
        lambda verb, path: verb == "PATCH" and path.endswith("/french/status"),
        lambda: fleet.adapter("french", placement={"mode": "All"}),
    )
    fleet.adapter("french", unload={"drainTimeoutSeconds": 9})
    await until("everywhere", lambda: all("french" in pod.residents() for pod in fleet.pods.values()))


async def test_pod_that_hangs_for_a_moment_costs_no_more_than_that(fleet: Fleet) -> None:
    await serving(fleet, "german", pods=1)
    pod = fleet.pods["base-0"]
    pod.hang()
    asyncio.get_running_loop().call_later(4, pod.wake)
    fleet.adapter("french")
    await until("ready", lambda: fleet.is_ready("french"), seconds=12)


async def test_pod_that_hangs_holds_up_its_base_for_a_second(fleet: Fleet) -> None:
    """The others are told, statuses are written, and another base does not notice."""
    await serving(fleet, "french", "german")
    fleet.base("other", replicas=1)
    await fleet.pod("other")
    fleet.pods["base-0"].hang()
    fleet.adapter("german", placement={"mode": "All"})
    fleet.adapter("french", placement={"mode": "All"})
    fleet.adapter("dutch", base={"name": "other"})
    other, hung = fleet.pods["base-1"], WRITE_SECONDS - 0.5  # then what was written to it would have been given up
    await until("told", lambda: other.residents() == {"french", "german"}, seconds=hung)
    await until("other base", lambda: fleet.is_ready("dutch"), seconds=hung)
    await until("said", lambda: fleet.condition("german", "Resident")[0] != "", seconds=hung)
    fleet.pods["base-0"].wake()
    await until("told too", lambda: fleet.pods["base-0"].residents() == {"french", "german"})


async def test_resolve_goes_on_while_its_pod_says_nothing(fleet: Fleet) -> None:
    await serving(fleet, "german", pods=2)
    for pod in fleet.pods.values():
        pod.resolve_seconds = 3.0
        pod.num_resolved = 0
    fleet.adapter("french")
    await until("asked", lambda: sum(pod.num_resolved for pod in fleet.pods.values()) == 1)
    asked = next(pod for pod in fleet.pods.values() if pod.num_resolved)
    asked.mute()
    await asyncio.sleep(2.4)
    asked.speak()
    await until("ready", lambda: fleet.is_ready("french"))
    assert sum(pod.num_resolved for pod in fleet.pods.values()) == 1


@pytest.mark.parametrize(
    ("spec", "reason"),
    [({"path": "bad-load"}, Reason.BASE_MODEL_MISMATCH), ({"path": "german", "suspend": True}, Reason.SUSPENDED)],
    ids=["spec names one that fails", "suspended"],
)
async def test_revision_that_status_has_lost_reaches_new_pods(
    fleet: Fleet, spec: dict[str, Any], reason: Reason
) -> None:
    """A status is lost as with a backup, and spec names another revision: what pods answer is what they say it is."""
    await serving(fleet, "french", pods=1)
    old = fleet.status("french")
    for operator in list(fleet.operators):
        await fleet.end(operator)
    body = fleet.kube.get(Kind.ADAPTER, NAMESPACE, "french")
    fleet.kube.put(Kind.ADAPTER, {**body, "metadata": {**body["metadata"], "finalizers": []}})
    fleet.delete("french")
    fleet.adapter("french", **spec)
    await fleet.operate()
    await until("said", lambda: fleet.condition("french") == ("False", reason))
    new = await fleet.pod()
    await until("it answers", lambda: new.stable("french") == old["stableRevision"])
    await until("status has it", lambda: "stableArtifact" in fleet.status("french"))
    status = fleet.status("french")
    assert status["stableRevision"] == old["stableRevision"]
    assert status["stableArtifact"]["digest"] == old["artifact"]["digest"]
    assert fleet.condition("french", "Available") == ("True", "Serving")


def grace_seconds(fleet: Fleet) -> int:
    """What the Deployment gives its pods to end."""
    template = fleet.kube.get("deployments", NAMESPACE, "base")["spec"]["template"]
    seconds: int = template["spec"]["terminationGracePeriodSeconds"]
    return seconds


async def test_object_that_cannot_be_applied_stops_no_adapter(fleet: Fleet) -> None:
    refused: list[str] = []

    def refuse(verb: str, path: str) -> None:
        if verb == "PATCH" and "/deployments/" in path:
            refused.append(path)
            raise Refused(429, "TooManyRequests")

    await serving(fleet, "french")
    before = grace_seconds(fleet)
    fleet.kube.before = refuse
    fleet.base(replicas=2, drain={"timeoutSeconds": 9})
    fleet.adapter("german")
    await until("ready", lambda: fleet.is_ready("german"))
    assert refused
    fleet.kube.before = None
    await until("applied", lambda: grace_seconds(fleet) != before)
    fleet.roll_out("base")
    await until("ready again", lambda: fleet.base_condition()[0] == "True")


async def test_conflict_on_a_live_object_is_tried_again(fleet: Fleet) -> None:
    refused: list[str] = []

    def conflict(name: str) -> None:
        refused.append(name)
        raise Refused(409, "Conflict")

    await serving(fleet, "german")
    for number, sub in enumerate(("", "/status", "/status")):
        path_of = f"/loraadapters/a{number}{sub}"
        fleet.kube.before = once(lambda verb, path, path_of=path_of: path.endswith(path_of), partial(conflict, path_of))
        fleet.adapter(f"a{number}")
        await until("ready", lambda number=number: fleet.is_ready(f"a{number}"))
        assert refused[number:] == [path_of]


async def test_half_a_resync_wakes_what_it_took_in(fleet: Fleet) -> None:
    def refuse(verb: str, path: str) -> None:
        if verb == "GET" and path.endswith("/pods"):
            raise Refused(503, "ServiceUnavailable")

    fleet.base(replicas=1)
    await fleet.operate(replace(CONFIG, resync_seconds=0.5))
    await fleet.pod()
    await until("base", lambda: fleet.base_condition()[0] == "True")
    fleet.kube.before = refuse
    with fleet.deaf():
        fleet.adapter("french")
        await until("ready", lambda: fleet.is_ready("french"))


async def test_lying_pod_moves_no_other_base_and_no_lease(fleet: Fleet) -> None:
    await serving(fleet, "french")
    fleet.base("other", replicas=1)
    await fleet.pod("other")
    for fence in (500_000, 2_000_000_000, 2**40):
        fleet.pods["base-0"].fence = fence
        fleet.pods["base-0"]._bump()
        fleet.adapter(f"a{fence}", base={"name": "other"})
        fleet.adapter(f"b{fence}")
        await until("others go on", lambda fence=fence: fleet.is_ready(f"a{fence}", f"b{fence}"))
    assert fleet.pods["other-2"].fence == 1
    assert fleet.kube.get("leases", "system", CONFIG.lease)["spec"]["leaseTransitions"] == 1


async def test_same_fence_of_another_leader_is_risen_above(fleet: Fleet) -> None:
    """As after a Lease that was deleted: numbers begin again, and pods have seen them before."""
    await serving(fleet, "french")
    for pod in fleet.pods.values():
        pod.catalogue_generation = 5000
        pod._bump()
    seen = {name: (pod.fence, pod.catalogue_generation) for name, pod in fleet.pods.items()}
    fleet.adapter("german")
    await until("ready", lambda: fleet.is_ready("german"))
    assert any((pod.fence, pod.catalogue_generation) > seen[name] for name, pod in fleet.pods.items())


async def test_leader_that_has_not_renewed_writes_nothing(fleet: Fleet) -> None:
    await serving(fleet, "french")
    await until("an Event for each", lambda: fleet.event_reasons() == ["Ready"] * 2)
    await settled(fleet)  # what is under way has passed the guard
    assert fleet.lease is not None
    told = {name: len(pod.writes) for name, pod in fleet.pods.items()}

    def refuse(verb: str, path: str) -> None:
        if "leases" in path:
            raise Refused(503, "ServiceUnavailable")

    fleet.kube.before = refuse
    fleet.lease._renewed -= 100
    written = len(fleet.kube.writes)
    fleet.base(replicas=2, drain={"timeoutSeconds": 9})
    fleet.adapter("french", "french-v2")
    fleet.adapter("german")
    await asyncio.sleep(0.5)
    assert fleet.kube.writes[written:] == []
    assert told == {name: len(pod.writes) for name, pod in fleet.pods.items()}


async def test_mended_source_is_tried_at_once_when_somebody_asks(fleet: Fleet) -> None:
    await serving(fleet, "french")
    for name in ("late", "later", "latest"):
        fleet.library.failures[name] = AdminError(reason=Reason.ARTIFACT_NOT_FOUND, message="not there")
        fleet.adapter(name)
        await until(name, lambda name=name: fleet.condition(name) == ("False", "ArtifactNotFound"))
    fleet.library.failures.clear()
    await asyncio.sleep(0.2)
    assert not fleet.is_ready("late")
    annotate(fleet, Kind.ADAPTER, "late", "1")
    await until("late", lambda: fleet.is_ready("late"), seconds=30)
    assert not fleet.is_ready("later")
    annotate(fleet, Kind.BASE, "base", "now")
    await until("the others", lambda: fleet.is_ready("later", "latest"), seconds=30)


async def test_mended_base_is_an_occasion_to_try_again(fleet: Fleet) -> None:
    await serving(fleet, "french")
    fleet.library.failures["late"] = AdminError(reason=Reason.UNAUTHORIZED, message="no key")
    fleet.adapter("late")
    await until("late", lambda: fleet.condition("late") == ("False", "Unauthorized"))
    fleet.library.failures.clear()
    fleet.base(replicas=2, drain={"timeoutSeconds": 9})
    await until("ready", lambda: fleet.is_ready("late"), seconds=30)


async def test_failed_load_is_told_again_when_somebody_asks(fleet: Fleet) -> None:
    await serving(fleet, "french", pods=1)
    pod = fleet.pods["base-0"]
    fleet.library.load_failures["german"] = Reason.SOURCE_NOT_ALLOWED
    fleet.adapter("german")
    await until("failed", lambda: fleet.condition("german") == ("False", "SourceNotAllowed"))
    fleet.library.load_failures.clear()
    told = len(pod.writes)
    annotate(fleet, Kind.ADAPTER, "german", "1")
    await until("ready", lambda: fleet.is_ready("german"), seconds=30)
    assert len(pod.writes) == told + 1


async def test_outage_of_a_base_is_one_event_and_so_is_its_end(fleet: Fleet) -> None:
    names = [f"a{number}" for number in range(5)]
    await serving(fleet, *names)
    await until("an Event for each", lambda: fleet.event_reasons() == ["Ready"] * 6)
    for name in list(fleet.pods):
        await fleet.kill(name)
    await until("all are lost", lambda: all(fleet.condition(name) == ("False", "NoReadyPods") for name in names))
    await until("said once", lambda: fleet.event_reasons().count("NoReadyPods") == 1)
    await fleet.pod()
    await until("back", lambda: fleet.is_ready(*names))
    await until("said once too", lambda: fleet.event_reasons().count("Ready") >= 7)
    await asyncio.sleep(0.3)
    assert fleet.event_reasons().count("NoReadyPods") == 1
    assert fleet.event_reasons().count("Ready") <= 8, "the base, and all of its adapters together"


@pytest.mark.parametrize("num_turns", [1, 3, 10])
@pytest.mark.parametrize("is_away", [True, False])
async def test_nothing_is_left_of_an_operator_that_is_cancelled_twice(
    fleet: Fleet, is_away: bool, num_turns: int
) -> None:
    """Neither tasks nor connections, whether it has begun to lead or the API server is away and it waits."""
    await serving(fleet, "french")
    (operator,) = fleet.operators
    await fleet.end(operator)
    before = left_over()
    operator = await fleet.operate()
    fleet.kube.is_away = is_away
    if not is_away:
        fleet.adapter("german")
        await until("it leads", lambda: fleet.is_ready("german"))
    for _ in range(2):
        for _ in range(num_turns):
            await asyncio.sleep(0)
        operator.cancel()
    await asyncio.gather(operator, return_exceptions=True)
    fleet.kube.is_away = False
    assert left_over() <= before


async def test_base_that_cannot_be_read_is_there(fleet: Fleet) -> None:
    """Its pods answer on: an adapter that is deleted meanwhile stays until its name is reserved and no pod holds it."""
    await serving(fleet, "french", "german", pods=1)
    base = fleet.kube.get(Kind.BASE, NAMESPACE, "base")
    fleet.kube.put(Kind.BASE, {**base, "spec": {**base["spec"], "replicas": "of later"}})
    await until("told", lambda: fleet.condition("french") == ("False", Reason.BASE_NOT_FOUND))
    ready = next(c for c in fleet.status("french")["conditions"] if c["type"] == "Ready")
    assert "cannot be read: spec.replicas" in ready["message"]
    assert fleet.status("french")["stableRevision"]
    fleet.delete("french")
    await settled(fleet)
    assert not fleet.is_gone("french")
    unread = fleet.kube.get(Kind.BASE, NAMESPACE, "base")
    fleet.kube.put(Kind.BASE, {**unread, "spec": base["spec"]})
    await until("gone", lambda: fleet.is_gone("french"))
    assert "french" in str(fleet.kube.get(Kind.BASE, NAMESPACE, "base")["status"]["reservedNames"])
    await until("as before", lambda: fleet.is_ready("german"))


async def test_name_of_a_deleted_adapter_that_cannot_be_read_is_reserved_too(fleet: Fleet) -> None:
    """A spec of a later version, after a rollback of the operator: its name is not free for another namespace."""
    await serving(fleet, "french", "german", pods=1)
    body = fleet.kube.get(Kind.ADAPTER, NAMESPACE, "french")
    fleet.kube.put(Kind.ADAPTER, {**body, "spec": {**body["spec"], "placement": {"mode": "OfLater"}}})
    await until("told", lambda: fleet.condition("french") == ("False", Reason.INVALID_SPEC))
    reserved: list[list[Any]] = []

    def hear(event: str, plural: str, _: Any) -> None:
        if (event, plural) == ("DELETED", Kind.ADAPTER):
            reserved.append(fleet.kube.get(Kind.BASE, NAMESPACE, "base")["status"].get("reservedNames", []))

    fleet.kube.on_change.append(hear)
    fleet.delete("french")
    await until("gone", lambda: fleet.is_gone("french"), seconds=20)
    assert [[(entry["name"], entry["namespace"]) for entry in entries] for entries in reserved] == [
        [("french", NAMESPACE)]
    ]
    assert fleet.is_ready("german")
