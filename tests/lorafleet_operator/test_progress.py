"""A revision that does not become the stable one: after how long it is reported, and with what in its way."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from support import operator_views as v
from support.operator_views import NOW
from support.simulated_fleet import Fleet, simulated_fleet, until

from lorafleet_contract.admin import AdapterState, Residency, Tier
from lorafleet_contract.resources import AdapterStatus, Condition
from lorafleet_operator.decide.adapter_status import adapter_status
from lorafleet_operator.decide.canary import rollout_plan
from lorafleet_operator.decide.conditions import condition_of
from lorafleet_operator.decide.intent import resolve_key
from lorafleet_operator.decide.plan import plan_of
from lorafleet_operator.decide.progress import next_deadline, next_step, obstacles
from lorafleet_operator.decide.views import ObservedPod

OLD, NEW = v.artifact("french"), v.artifact("french-v2")
DEADLINE = timedelta(seconds=600)
EXCEEDED = "ProgressDeadlineExceeded"
answers = v.entry("french")
loads = v.entry("french-v2", stable=False, state=AdapterState.LOADING)
loaded = v.entry("french-v2", stable=False)


def pods(*states: Sequence[Any]) -> list[ObservedPod]:
    return [v.seen(*entries, pod=v.pod(f"p{number}")) for number, entries in enumerate(states)]


class Story:
    """An adapter whose status is written again and again."""

    def __init__(self, **spec: Any) -> None:
        self.spec = {"source": {"name": "models", "path": "french-v2"}, **spec}
        self.status: dict[str, Any] = v.served("french")

    def at(self, seconds: float, pods: list[ObservedPod], **spec: Any) -> AdapterStatus:
        adapter = v.adapter(status=self.status, **{**self.spec, **spec})
        plan = plan_of(v.snapshot(adapter, base=v.base()), pods, {resolve_key(adapter): NEW})
        now = NOW + timedelta(seconds=seconds)
        found = adapter_status(plan.lineups[0], pods, plan.placement, now=now)
        self.status = found.model_dump(mode="json", by_alias=True, exclude_none=True)
        return found


def ready(status: AdapterStatus) -> Condition:
    found = condition_of(status.conditions, "Ready")
    assert found is not None
    return found


def test_pods_that_never_load_it_are_named_after_the_deadline() -> None:
    """What served before goes on serving, and whoever judges by kstatus sees a failure."""
    story, stuck = Story(), pods([answers, loaded], [answers, loads])
    assert ready(story.at(0, stuck)).reason == "Loading"
    assert ready(story.at(599, stuck)).reason == "Loading"
    late = story.at(600, stuck)
    assert (ready(late).status, ready(late).reason) == ("False", EXCEEDED)
    assert "600 s" in ready(late).message
    assert "ready on 1 of 2 pods; p1: Loading" in ready(late).message
    conditions = {c.type: (c.status, c.reason) for c in late.conditions}
    assert conditions["Stalled"] == ("True", EXCEEDED)
    assert "Reconciling" not in conditions
    assert conditions["Available"][0] == "True"
    assert late.stable_revision == OLD.revision
    assert story.at(700, stuck) == late, "nothing is written while nothing changes"


def test_it_ends_when_the_revision_is_served() -> None:
    story = Story()
    story.at(0, pods([answers, loads]))
    assert ready(story.at(900, pods([answers, loads]))).reason == EXCEEDED
    done = story.at(901, pods([v.entry("french", stable=False), v.entry("french-v2")]))
    assert ready(done).status == "True"
    assert done.rollout is None


def test_each_further_pod_is_progress_and_one_that_comes_and_goes_is_not() -> None:
    story = Story(rollout={"progressDeadlineSeconds": 60})
    none, one = pods([answers, loads], [answers, loads]), pods([answers, loaded], [answers, loads])
    story.at(0, none)
    assert ready(story.at(50, one)).reason == "Loading"
    assert ready(story.at(109, one)).reason == "Loading"
    for seconds in (70, 80, 90, 100):
        assert ready(story.at(seconds, none)).reason == "Loading"
        assert ready(story.at(seconds + 5, one)).reason == "Loading"
    assert ready(story.at(110, one)).reason == EXCEEDED


def test_another_revision_has_its_own_time() -> None:
    story, stuck = Story(), pods([answers, loads])
    story.at(0, stuck)
    story.status["rollout"]["revision"] = "0" * 12
    again = story.at(600, stuck)
    assert ready(again).reason == "Loading"
    assert again.rollout is not None
    assert again.rollout.start_time == NOW + timedelta(seconds=600)


def test_time_without_pods_or_suspended_does_not_count() -> None:
    """A base that is scaled to zero over night would else be late at once in the morning."""
    story, stuck = Story(), pods([answers, loads])
    story.at(0, stuck)
    assert story.at(300, []).rollout is None
    assert ready(story.at(3600, stuck)).reason == "Loading"
    assert story.at(3700, stuck, suspend=True).rollout is None
    assert ready(story.at(7200, stuck)).reason == "Loading"


@pytest.mark.parametrize(
    ("reason", "said"), [("BaseModelMismatch", "BaseModelMismatch"), ("SourceUnavailable", EXCEEDED)]
)
def test_what_will_not_mend_itself_keeps_its_own_reason(reason: str, said: str) -> None:
    failed = v.entry("french-v2", stable=False, state=AdapterState.FAILED, reason=reason, message="so it is")
    story = Story()
    story.at(0, pods([answers, failed]))
    late = ready(story.at(1000, pods([answers, failed])))
    assert late.reason == said
    assert "so it is" in late.message


def test_each_obstacle_is_named() -> None:
    draining = v.seen(pod=v.pod("p-draining"), draining=True)
    starting = v.seen(answers, pod=v.pod("p-starting", ready=False))
    found = {
        "no answer": [v.silent(v.pod("p"))],
        "unknown": pods([answers]),
        "failed": pods([v.entry("french-v2", state=AdapterState.FAILED, reason="DiskFull", message="full")]),
        "prefetched": pods(
            [v.entry("french-v2", state=AdapterState.DOWNLOADING, residency=Residency.ON_DEMAND, stable=False)]
        ),
        "pinned full": [v.seen(v.entry("french-v2", tier=Tier.DISK, rank=8), pod=v.pod("p"), slots=0)],
        "not told": pods([loaded]),
        "well": [draining, *pods([v.entry("french-v2")])],
        "not ready": [starting],
    }
    words = {what: obstacles("french", NEW.revision, pods) for what, pods in found.items()}
    assert words == {
        "no answer": "p: does not answer the operator",
        "unknown": "p0: has not taken the revision into its catalogue",
        "failed": "p0: DiskFull: full",
        "prefetched": "p0: Downloading",
        "pinned full": "p: no room beside what is pinned: 0 of 0 places and 0 of 64 rank pages",
        "not told": "p0: loaded, and does not answer the bare name with it",
        "well": "no ready pod is in its way",
        "not ready": "no ready pod is in its way",
    }
    three = obstacles("french", NEW.revision, pods(*[[loads]] * 3))
    assert three == "p0: Loading; p1: Loading; p2: Loading"
    many = obstacles("french", NEW.revision, pods(*[[loads]] * 50))
    assert many == "p0: Loading; p1: Loading; p10: Loading; and 47 more pods"


def test_next_deadline_is_that_of_the_first() -> None:
    story = Story()
    status = story.at(0, pods([answers, loads]))
    pairs = [
        (v.adapter(rollout={"progressDeadlineSeconds": 100}), status),
        (v.adapter(rollout={"progressDeadlineSeconds": 40}), status),
        (v.adapter(rollout={"progressDeadlineSeconds": 5}), status),
        (v.adapter(), status.model_copy(update={"rollout": None})),
    ]
    assert next_deadline(pairs, NOW + timedelta(seconds=10)) == 30
    assert next_deadline(pairs, NOW + timedelta(seconds=100)) is None


@pytest_asyncio.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with simulated_fleet() as it:
        yield it


async def test_a_stuck_switch_is_reported_in_time_and_ends_well(fleet: Fleet) -> None:
    """Before the next resync."""
    fleet.base(replicas=2)
    rollout = {"progressDeadlineSeconds": 2}
    fleet.adapter("french", placement={"mode": "All"}, rollout=rollout)
    await fleet.operate()
    await fleet.pod()
    await fleet.pod()
    await until("ready", lambda: fleet.is_ready("french"))
    before = fleet.status("french")["stableRevision"]
    name, stuck = sorted(fleet.pods.items())[1]
    stuck.load_seconds = 3600
    fleet.adapter("french", "french-v2", placement={"mode": "All"}, rollout=rollout)
    await until("reported", lambda: fleet.condition("french")[1] == EXCEEDED)
    status = fleet.status("french")
    message = next(c["message"] for c in status["conditions"] if c["type"] == "Ready")
    assert f"ready on 1 of 2 pods; {name}: Loading" in message
    assert status["stableRevision"] == before
    assert status["rollout"]["readyPods"] == 1
    assert {pod.stable("french") for pod in fleet.pods.values()} == {before}
    await until("an Event", lambda: EXCEEDED in fleet.event_reasons())
    stuck._finish(("french", status["desiredRevision"]), AdapterState.READY)
    await until("ready", lambda: fleet.is_ready("french"))
    assert "rollout" not in fleet.status("french")
    assert fleet.status("french")["stableRevision"] == status["desiredRevision"]


STEPS: dict[str, Any] = {"steps": [{"setWeight": 5}, {"pause": {"durationSeconds": 60}}]}


def place(status: AdapterStatus) -> tuple[Any, ...]:
    rollout = status.rollout
    assert rollout is not None
    shares = [share.weight for share in status.traffic or ()]
    return rollout.phase, rollout.step_index, rollout.ready_pods, shares


def test_by_steps_nothing_is_asked_of_it_before_every_pod_can_answer() -> None:
    story, both = Story(rollout=STEPS), pods([answers, loaded], [answers, loaded])
    assert place(story.at(0, pods([answers, loaded], [answers, loads]))) == ("Loading", 0, 1, [100])
    assert story.at(599, pods([answers, loads])).rollout is not None
    assert ready(story.at(600, pods([answers, loads]))).reason == EXCEEDED, (
        "a step has not begun: its time is that of loading"
    )
    assert place(story.at(700, both)) == ("Progressing", 1, 2, [95, 5])
    assert ready(story.at(701, both)).reason == "CanaryStep"
    assert ready(story.at(759, pods([answers, loads]))).reason == "CanaryStep", "no deadline of loading"
    assert place(story.at(760, pods([answers, loads]))) == ("Progressing", 1, 2, [95, 5])
    assert place(story.at(761, both)) == ("Promoting", 2, 2, [95, 5])
    assert ready(story.at(762, both)).reason == "Loading"
    assert ready(story.at(1361, both)).reason == EXCEEDED
    found = story.at(1362, pods([v.entry("french", stable=False), v.entry("french-v2")]))
    assert (found.rollout, [share.weight for share in found.traffic or ()]) == (None, [100])
    assert found.history[0].result == "Promoted"


def test_by_steps_without_a_pod_that_serves_it_does_not_begin() -> None:
    story = Story(rollout=STEPS)
    down = [v.seen(answers, loaded, pod=v.pod("p0", ready=False))]
    assert story.at(0, down).rollout is None
    assert story.at(1, []).rollout is None
    story.at(2, pods([answers, loads]))
    assert story.at(3, down).rollout is None, "it begins anew"
    story.at(4, pods([answers, loaded]))
    assert place(story.at(5, down))[:2] == ("Progressing", 1), "a step goes on"
    assert place(story.at(6, []))[:2] == ("Paused", 1), "and waits where there is no pod at all"
    leaving = [v.seen(answers, loaded, pod=v.pod("p0", leaving=True))]
    assert place(story.at(7, leaving))[:2] == ("Paused", 1)
    assert place(story.at(8, pods([answers, loaded])))[:2] == ("Progressing", 1)


def test_by_steps_a_suspended_adapter_begins_none() -> None:
    story = Story(rollout=STEPS)
    story.status |= {
        "artifact": NEW.model_dump(mode="json", by_alias=True),
        "stableArtifact": OLD.model_dump(mode="json", by_alias=True),
    }
    assert story.at(0, pods([answers, loaded]), suspend=True).rollout is None
    story.at(1, pods([answers, loaded]))
    assert place(story.at(2, pods([answers, loaded]), suspend=True))[:2] == ("Paused", 1)


def test_next_step_is_that_of_the_first_that_is_timed() -> None:
    story = Story(rollout=STEPS)
    found = story.at(0, pods([answers, loaded])).rollout
    plan = rollout_plan(v.adapter(rollout=STEPS), None)
    later = found.model_copy(update={"step_start_time": NOW + timedelta(seconds=5)}) if found is not None else None
    assert next_step([(plan, later), (plan, found), (None, found), (plan, None)], NOW) == 60
    assert next_step([(None, found), (plan, None)], NOW) is None
    assert next_step([(plan, found)], NOW + timedelta(seconds=61)) == 599, "its deadline"
