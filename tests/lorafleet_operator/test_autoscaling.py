"""How many pods a base should have."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from support import operator_views as v
from support.simulated_fleet import NAMESPACE, Fleet, settled, simulated_fleet, until

from lorafleet_contract.autoscaling import AutoscalingSpec, AutoscalingStatus
from lorafleet_contract.names import ANNOTATION_DELETION_COST
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterStatus
from lorafleet_operator.act import autoscaling
from lorafleet_operator.cluster.store import Kind
from lorafleet_operator.decide.autoscaling import Load, Memory, Scale, Scaled, begin, bounded, decide, needs_pod


def spec(**more: Any) -> AutoscalingSpec:
    given = {"min_replicas": 1, "max_replicas": 8, "target_sequences": 10, "scale_down_after_seconds": 100}
    return AutoscalingSpec(**{**given, **more})


def course(spec: AutoscalingSpec, current: int, *loads: tuple[float, int | Load]) -> list[Scale]:
    """What is decided of one load after the other, at (seconds, sequences)."""
    memory, found = begin(current, 0.0), []
    for at, load in loads:
        scale = decide(spec, current, load if isinstance(load, Load) else Load(load), memory, at)
        current, memory = scale.desired, scale.memory
        found.append(scale)
    return found


def numbers(scales: list[Scale]) -> list[int]:
    return [scale.desired for scale in scales]


def test_more_at_once_and_as_many_as_have_their_target() -> None:
    (scale,) = course(spec(), 1, (1, 41))
    assert (scale.desired, scale.reason) == (5, Reason.LOAD_ABOVE_TARGET)
    assert scale.message == "from 1 to 5: 41 sequences, and a pod should have 10"
    assert scale.limit is None


def test_a_tenth_above_the_target_is_no_reason_for_one_more() -> None:
    assert numbers(course(spec(), 2, (1, 21), (2, 22), (3, 23))) == [2, 2, 3]
    assert numbers(course(spec(), 1, (1, 11), (2, 12))) == [1, 2]


def test_fewer_only_after_they_were_enough_without_a_break() -> None:
    quiet = course(spec(), 4, (1, 0), (99, 0), (101, 0))
    assert numbers(quiet) == [4, 4, 1]
    assert [scale.reason for scale in quiet] == [None, None, Reason.LOAD_BELOW_TARGET]
    assert [scale.message for scale in quiet][:2] == ["", ""]
    assert numbers(course(spec(), 4, (99, 0), (100, 0))) == [4, 1]
    (from_all,) = course(spec(max_replicas=4, scale_down_after_seconds=0), 4, (1, 0))
    assert from_all.reason is Reason.LOAD_BELOW_TARGET
    broken = course(spec(), 4, (1, 0), (60, 30), (101, 0), (159, 0), (161, 0))
    assert numbers(broken) == [4, 4, 3, 3, 1]


def test_what_is_remembered_of_a_window_is_what_may_count_yet() -> None:
    scales = course(spec(), 4, (1, 35), (2, 11), (3, 11), (4, 25))
    assert [scale.memory.peaks for scale in scales] == [
        ((1, 4),),
        ((1, 4), (2, 2)),
        ((1, 4), (3, 2)),
        ((1, 4), (4, 3)),
    ]


def test_without_patience_fewer_at_once() -> None:
    assert numbers(course(spec(scale_down_after_seconds=0), 4, (1, 11))) == [2]


def test_a_pod_that_does_not_say_is_no_reason_for_more_nor_for_fewer() -> None:
    impatient = spec(scale_down_after_seconds=0)
    assert numbers(course(impatient, 3, (1, Load(11, num_silent=1)))) == [3]
    assert numbers(course(impatient, 4, (1, Load(11, num_silent=1)))) == [3]
    assert numbers(course(impatient, 3, (1, Load(35, num_silent=5)))) == [4]


def test_more_than_allowed_is_said_for_as_long_as_it_is_remembered() -> None:
    scales = course(spec(max_replicas=3), 3, (1, 31), (2, 34), (50, 5), (101, 5), (103, 5))
    assert numbers(scales) == [3, 3, 3, 3, 1]
    assert [scale.limit is not None for scale in scales] == [False, True, True, True, False]
    assert scales[1].limit is not None
    assert scales[1].limit.reason is Reason.TOO_FEW_REPLICAS
    assert "maxReplicas, which is 3" in scales[1].limit.message


def test_bounds_that_have_moved_hold_at_once() -> None:
    for current, desired in ((1, 2), (9, 4)):
        (scale,) = course(spec(min_replicas=2, max_replicas=4), current, (1, 0))
        assert (scale.desired, scale.reason) == (desired, Reason.OUT_OF_BOUNDS)
        assert scale.message == f"from {current} to {desired}: 2 to 4 are allowed"


SPECS = st.builds(
    lambda least, more, target, seconds: AutoscalingSpec(
        min_replicas=least, max_replicas=least + more, target_sequences=target, scale_down_after_seconds=seconds
    ),
    st.integers(1, 4),
    st.integers(0, 6),
    st.integers(1, 20),
    st.integers(0, 30),
)
LOADS = st.lists(st.builds(Load, st.integers(0, 200), st.integers(0, 3)), min_size=1, max_size=40)


@given(SPECS, st.integers(0, 12), LOADS)
def test_whatever_happens_it_is_within_bounds_and_never_below_what_was_needed(
    spec: AutoscalingSpec, current: int, loads: list[Load]
) -> None:
    scales = course(spec, current, *((float(at), load) for at, load in enumerate(loads)))
    before = current
    for at, (scale, load) in enumerate(zip(scales, loads, strict=True)):
        assert spec.min_replicas <= scale.desired <= spec.max_replicas
        assert (scale.reason is None) == (scale.desired == before)
        assert len(scale.memory.peaks) <= 12 + 200
        if scale.desired < before and spec.min_replicas <= before <= spec.max_replicas:
            window = loads[max(0, at + 1 - max(1, spec.scale_down_after_seconds)) : at + 1]
            needed = [-(-one.num_sequences // spec.target_sequences) for one in window]
            assert scale.desired >= min(before, bounded(spec, max(needed)))
            assert at >= spec.scale_down_after_seconds or spec.scale_down_after_seconds == 0
        if scale.desired > before >= spec.min_replicas:
            assert load.num_sequences > before * spec.target_sequences
        before = scale.desired


@given(SPECS, st.integers(1, 12), st.integers(0, 200), st.integers(0, 200))
def test_more_to_do_is_never_fewer_pods(spec: AutoscalingSpec, current: int, one: int, other: int) -> None:
    less, more = sorted((one, other))
    memory = Memory(((0.0, current),), 1e6)
    fewer, others = (decide(spec, current, Load(number), memory, 1e6) for number in (less, more))
    assert fewer.desired <= others.desired


def sleepy(**more: Any) -> AutoscalingSpec:
    """May do without pods after a minute."""
    return spec(**{"min_replicas": 0, "scale_to_zero": {"idle_seconds": 60}, **more})


def test_the_last_pod_goes_when_nothing_was_asked_for_long_enough() -> None:
    scales = course(sleepy(), 1, (10, Load(0, wanted="1 requests")), (69, 0), (71, 0), (200, 0))
    assert numbers(scales) == [1, 1, 0, 0]
    assert (scales[2].reason, scales[2].message) == (Reason.SCALED_TO_ZERO, "from 1 to 0: nothing was asked for 61 s")
    assert numbers(course(sleepy(), 1, (59, 0), (60, 0))) == [1, 0], "nobody knows what was asked before"


def test_several_pods_go_no_sooner_than_otherwise() -> None:
    assert numbers(course(sleepy(), 3, (61, 0), (99, 0), (101, 0))) == [3, 3, 0]
    assert numbers(course(sleepy(), 2, (61, 0), (99, 0), (101, 0))) == [2, 2, 0]


def test_with_a_lower_bound_the_last_pod_stays() -> None:
    assert numbers(course(spec(), 1, (10**6, 0), (2 * 10**6, 0))) == [1, 1]


def test_the_first_pod_comes_for_whatever_wants_one_and_for_nothing_else() -> None:
    for load in (Load(0, wanted="2 adapters that need a pod"), Load(3)):
        (scale,) = course(sleepy(), 0, (1, load))
        assert (scale.desired, scale.reason) == (1, Reason.WOKEN)
        assert scale.message.startswith("from 0 to 1: ")
    assert numbers(course(sleepy(), 0, (1, Load(35)))) == [4]
    assert numbers(course(sleepy(), 0, (1, Load(0, num_silent=1)))) == [0], "it is on its way out"
    without = course(sleepy(), 0, (1, 0), (10**6, Load(0, is_blind="gateways are not listed")))
    assert [(scale.desired, scale.limit) for scale in without] == [(0, None), (0, None)]


def test_while_a_request_could_come_unnoticed_the_last_pod_stays_and_it_is_said() -> None:
    blind = Load(0, is_blind="gateway a does not answer")
    early, late, heard = course(sleepy(), 1, (59, blind), (61, blind), (62, Load(0)))
    assert (early.desired, early.limit) == (1, None)
    assert late.desired == 1
    assert late.limit is not None
    assert late.limit.reason is Reason.GATEWAYS_SILENT
    assert late.limit.message.endswith("gateway a does not answer")
    assert (heard.desired, heard.limit) == (0, None)


def test_a_pod_that_does_not_say_may_have_something_to_do() -> None:
    assert numbers(course(sleepy(), 1, (59, Load(0, num_silent=1)), (118, 0), (120, 0))) == [1, 1, 0]


@given(
    st.lists(
        st.builds(Load, st.integers(0, 30), st.integers(0, 1), st.sampled_from(["", "x"]), st.sampled_from(["", "y"]))
    )
)
def test_no_pod_is_right_only_after_a_minute_without_a_need(loads: list[Load]) -> None:
    """At ten seconds a look; and whatever needs a pod has one at once."""
    before, needs = 1, [0]
    for number, scale in enumerate(course(sleepy(), 1, *((10.0 * at, load) for at, load in enumerate(loads)))):
        load = loads[number]
        if load.num_sequences or load.wanted or (load.num_silent and before > 0):
            needs.append(number)
            assert scale.desired >= 1
        if before > 0 and scale.desired == 0:
            assert number - needs[-1] >= 6
            assert not load.is_blind
        before = scale.desired


@pytest.mark.parametrize(
    ("desired", "awake_for", "is_asleep"),
    [(0, None, True), (1, None, False), (1, 1, True), (1, 0, False), (1, -1, False), (0, -1, True)],
)
def test_a_base_is_asleep_until_its_first_pod_may_be_expected(
    desired: int, awake_for: int | None, is_asleep: bool
) -> None:
    status = AutoscalingStatus(desired_replicas=desired, reason=Reason.WOKEN, last_scale_time=v.NOW)
    until = v.NOW + timedelta(seconds=awake_for) if awake_for is not None else None
    assert Scaled(status, awake_until=until).is_asleep(v.NOW) is is_asleep


@pytest.mark.parametrize(
    ("conditions", "does"),
    [
        ({"Ready": "Loading"}, True),
        ({"Ready": "NoReadyPods", "Reconciling": "NoReadyPods"}, True),
        ({"Ready": "Loading", "Stalled": "Loading"}, False),
        ({"Ready": "SourceUnavailable"}, False),
        ({"Ready": "CanaryPaused"}, False),
        ({"Ready": "Suspended"}, False),
        ({"Available": "NoReadyPods"}, False),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else None,
)
def test_which_adapters_are_worth_a_pod(conditions: dict[str, str], does: bool) -> None:
    said = [
        {"type": kind, "status": "False" if kind == "Ready" else "True", "reason": reason, "lastTransitionTime": v.NOW}
        for kind, reason in conditions.items()
    ]
    assert needs_pod(AdapterStatus.model_validate({"conditions": said})) is does


def test_an_adapter_that_is_ready_is_worth_none() -> None:
    said = {"type": "Ready", "status": "True", "reason": "Loading", "lastTransitionTime": v.NOW}
    assert not needs_pod(AdapterStatus.model_validate({"conditions": [said]}))


@pytest_asyncio.fixture
async def fleet(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    monkeypatch.setattr(autoscaling, "SAMPLE_SECONDS", 0.05)
    async with simulated_fleet() as it:
        yield it


def scaling(**more: int) -> dict[str, int]:
    return {"minReplicas": 1, "maxReplicas": 3, "targetSequences": 10, "scaleDownAfterSeconds": 1, **more}


def told(fleet: Fleet) -> dict:
    status: dict = fleet.kube.get(Kind.BASE, NAMESPACE, "base").get("status", {}).get("autoscaling", {})
    return status


def replicas(fleet: Fleet) -> int:
    found = fleet.kube.find("deployments", NAMESPACE, "base")
    return -1 if found is None else found["spec"]["replicas"]


def scaled_to(fleet: Fleet, number: int, reason: Reason) -> bool:
    return (replicas(fleet), told(fleet).get("desiredReplicas"), told(fleet).get("reason")) == (number, number, reason)


async def test_pods_follow_what_they_have_to_do(fleet: Fleet) -> None:
    fleet.base(autoscaling=scaling())
    fleet.adapter("french")
    await fleet.operate()
    first = await fleet.pod()
    await until("ready", lambda: fleet.is_ready("french") and scaled_to(fleet, 1, Reason.INITIAL_REPLICAS))
    first.num_running, first.num_waiting = 9, 36
    await until("as many as allowed", lambda: scaled_to(fleet, 3, Reason.LOAD_ABOVE_TARGET))
    assert told(fleet)["message"] == "from 1 to 3: 45 sequences, and a pod should have 10"
    await until("it is said", lambda: fleet.base_condition("ScalingLimited") == ("True", Reason.TOO_FEW_REPLICAS))
    for _ in range(2):
        await fleet.pod()
    await until("all there", lambda: fleet.base_condition() == ("True", Reason.PODS_READY))
    first.num_running, first.num_waiting = 7, 0
    await until("fewer", lambda: scaled_to(fleet, 1, Reason.LOAD_BELOW_TARGET))
    costs = {
        name: int(fleet.kube.get(Kind.POD, NAMESPACE, name)["metadata"]["annotations"][ANNOTATION_DELETION_COST])
        for name in fleet.pods
    }
    assert max(costs, key=costs.__getitem__) == "base-0", "it has something to do"
    for name in ("base-1", "base-2"):
        await fleet.kill(name)
    await until("no more limit", lambda: fleet.base_condition("ScalingLimited") == ("", ""))
    assert {"LoadAboveTarget", "LoadBelowTarget"} <= set(fleet.event_reasons())


async def test_the_next_operator_goes_on_with_what_status_says(fleet: Fleet) -> None:
    """It has seen no load yet: that is no reason for fewer pods."""
    fleet.base(autoscaling=scaling(scaleDownAfterSeconds=3600))
    operator = await fleet.operate()
    pods = [await fleet.pod() for _ in range(2)]
    await until("as many as there were", lambda: scaled_to(fleet, 2, Reason.INITIAL_REPLICAS))
    pods[0].num_running = 25
    await until("more", lambda: scaled_to(fleet, 3, Reason.LOAD_ABOVE_TARGET))
    since = told(fleet)["lastScaleTime"]
    pods[0].num_running = 0
    await fleet.end(operator)
    await fleet.operate()
    fleet.adapter("french")
    await until("the next one works", lambda: fleet.is_ready("french"))
    await settled(fleet)
    assert scaled_to(fleet, 3, Reason.LOAD_ABOVE_TARGET)
    assert told(fleet)["lastScaleTime"] == since


async def test_bounds_hold_at_once_and_without_autoscaling_replicas_count(fleet: Fleet) -> None:
    fleet.base(autoscaling=scaling(minReplicas=2))
    await fleet.operate()
    await until("the lower bound", lambda: scaled_to(fleet, 2, Reason.INITIAL_REPLICAS))
    fleet.base(autoscaling=scaling(minReplicas=3))
    await until("the other bound", lambda: scaled_to(fleet, 3, Reason.OUT_OF_BOUNDS))
    fleet.base(autoscaling=scaling(minReplicas=1), suspend=True)
    await until("it is seen", lambda: fleet.base_condition() == ("False", Reason.SUSPENDED))
    assert scaled_to(fleet, 3, Reason.OUT_OF_BOUNDS)
    fleet.base(replicas=5)
    await until("what spec says", lambda: replicas(fleet) == 5 and not told(fleet))


async def test_pods_that_do_not_say_what_they_have_keep_their_number(fleet: Fleet) -> None:
    """As those of an earlier version, which have no such path."""
    fleet.base(autoscaling=scaling(minReplicas=2, scaleDownAfterSeconds=0))
    await fleet.operate()
    pods = [await fleet.pod() for _ in range(2)]
    for pod in pods:
        pod.has_load = False
    await until("ready", lambda: fleet.base_condition() == ("True", Reason.PODS_READY))
    fleet.base(autoscaling=scaling(scaleDownAfterSeconds=0))
    num_asked = pods[0].num_load_asked
    await until("asked again and again", lambda: pods[0].num_load_asked > num_asked + 3)
    assert replicas(fleet) == 2
    pods[0].has_load = True
    await until("one has nothing to do", lambda: scaled_to(fleet, 1, Reason.LOAD_BELOW_TARGET))
