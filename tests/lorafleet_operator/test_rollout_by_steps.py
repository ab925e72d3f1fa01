"""Rollouts by steps, with the real operator and a gateway on a virtual clock: who gets which part of the requests, and until when."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.simulated_fleet import BASE, NAMESPACE
from support.virtual_fleet import VirtualFleet
from support.virtual_gateway import VirtualGateway
from support.virtual_time import VirtualLoop

from lorafleet_contract.evidence import ErrorClass
from lorafleet_contract.names import ANNOTATION_ABORT, ANNOTATION_PROMOTE, ANNOTATION_RETRY
from lorafleet_operator import metrics
from lorafleet_operator.cluster.store import Kind
from lorafleet_operator.decide.measured import Reading

Json = dict[str, Any]
TIMED = [{"setWeight": 20}, {"pause": {"durationSeconds": 60}}, {"setWeight": 50}, {"pause": {"durationSeconds": 60}}]
GUARDED = [{"setWeight": 20}, {"pause": {}}, {"setWeight": 50}, {"pause": {}}]


JUDGED = [{"setWeight": 20}, {"pause": {"durationSeconds": 10}}, {"setWeight": 50}]
ANALYSIS = {
    "windowSeconds": 30,
    "minRequests": 20,
    "maxErrorPercent": 5,
    "maxErrorPercentOverStable": 1,
    "maxLatencyPercentOverStable": 50,
}


class Story:
    """One adapter `a`, that answers with p1, and what its status has said."""

    def __init__(self, **base: Any) -> None:
        self.loop = VirtualLoop()
        asyncio.set_event_loop(None)
        self.fleet = self.do(self._make())
        self.traffic: list[list[int]] = []
        """Weights, each time that they changed."""
        self.do(self._begin(base))

    async def _make(self) -> VirtualFleet:
        return VirtualFleet()

    async def _begin(self, base: Json) -> None:
        self.fleet.base(replicas=2, **base)
        self.fleet.adapter("a", "p1")
        self.fleet.start("operator-0")
        self.fleet.open_gateway()
        await asyncio.sleep(1)
        for _ in range(2):
            await self.fleet.pod()
        await asyncio.sleep(20)
        assert self.fleet.is_ready("a")
        self.fleet.kube.on_change.append(self._note)

    def _note(self, _: str, plural: str, body: Json) -> None:
        if plural == Kind.ADAPTER and body["metadata"]["name"] == "a":
            weights = [share["weight"] for share in body["status"].get("traffic", [])]
            if weights != (self.traffic[-1] if self.traffic else []):
                self.traffic.append(weights)

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def apply(self, path: str = "p2", steps: list[Json] | None = None, **rollout: Any) -> None:
        """Another source, with steps."""

        async def apply() -> None:
            given = {"steps": TIMED if steps is None else steps, **rollout}
            self.fleet.adapter("a", path, placement={"mode": "All"}, rollout=given)

        self.do(apply())

    def annotate(self, **annotations: str | None) -> None:
        async def annotate() -> None:
            body = self.fleet.kube.get(Kind.ADAPTER, NAMESPACE, "a")
            named = {NAMES[name]: value for name, value in annotations.items()}
            merged = {**body["metadata"].get("annotations", {}), **named}
            kept = {name: value for name, value in merged.items() if value is not None}
            self.fleet.kube.put(Kind.ADAPTER, {**body, "metadata": {**body["metadata"], "annotations": kept}})

        self.do(annotate())

    def wait(self, seconds: float) -> "Story":
        self.do(asyncio.sleep(seconds))
        self.fleet.check()
        return self

    def until(self, look: Callable[["Story"], bool], *, seconds: int = 300) -> "Story":
        for _ in range(seconds):
            if look(self):
                return self
            self.wait(1)
        raise AssertionError(f"not within {seconds} s: {self.status}")

    def answers(self, number: int = 40) -> Counter[str]:
        """Revisions that answer so many requests."""

        async def ask() -> Counter[str]:
            gateway = self.fleet.gateway
            assert gateway is not None
            asked = await asyncio.gather(*(gateway.ask("a") for _ in range(number)))
            return Counter(one.revision or one.error for one in asked)

        found: Counter[str] = self.do(ask())
        return found

    def judged(self, seconds: int, *, until: str | None = None, per_second: int = 6, **rollout: Any) -> "Story":
        """Another revision under analysis, with requests all the time, for so long or until a phase."""
        if rollout:
            self.apply(steps=JUDGED, analysis=ANALYSIS, **rollout)
        for _ in range(seconds):
            if until is not None and self.phase == until:
                return self
            self.answers(per_second)
            self.wait(1)
        assert until is None, self.status
        return self

    @property
    def gateway(self) -> VirtualGateway:
        assert self.fleet.gateway is not None
        return self.fleet.gateway

    @property
    def evidence(self) -> Json:
        found: Json = self.rollout["evidence"]
        return found

    @property
    def status(self) -> Json:
        return self.fleet.status("a")

    @property
    def rollout(self) -> Json:
        found: Json = self.status.get("rollout", {})
        return found

    @property
    def phase(self) -> str | None:
        return self.rollout.get("phase")

    @property
    def place(self) -> tuple[str | None, int | None, list[int]]:
        """Phase, step and weights."""
        weights = [share["weight"] for share in self.status.get("traffic", [])]
        return self.phase, self.rollout.get("stepIndex"), weights

    @property
    def stable(self) -> str:
        return str(self.status["stableRevision"])

    @property
    def history(self) -> list[tuple[str, str | None, str | None]]:
        return [(entry["revision"], entry.get("result"), entry.get("reason")) for entry in self.status["history"]]

    def revision(self, path: str) -> str:
        return self.fleet.revision(path)

    def held(self, path: str) -> list[bool]:
        """Of each pod, whether it has the revision."""
        return [("a", self.revision(path)) in pod.entries for pod in self.fleet.pods.values()]

    def events(self) -> list[str]:
        """Reasons of all Events about the adapter, in their order."""
        found = [body for (kind, _, _), body in self.fleet.kube.objects.items() if kind == "events"]
        return [body["reason"] for body in found if body["involvedObject"]["kind"] == "LoraAdapter"]

    def close(self) -> None:
        self.do(self.fleet.close())
        self.do(self.loop.shutdown_asyncgens())
        self.loop.close()


NAMES = {"promote": ANNOTATION_PROMOTE, "abort": ANNOTATION_ABORT, "retry": ANNOTATION_RETRY}
PROGRESSING, PAUSED, ROLLED_BACK = "Progressing", "Paused", "RolledBack"


@pytest.fixture
def story() -> Iterator[Story]:
    it = Story()
    yield it
    it.close()


def ended(result: str, reason: str = "") -> float:
    value = metrics.REGISTRY.get_sample_value("lorafleet_operator_rollouts_total", {"result": result, "reason": reason})
    return value or 0.0


def test_ends_are_counted_from_zero() -> None:
    """A series that begins at one is no increase to Prometheus."""
    found = [sample.labels for sample in metrics.ROLLOUTS.collect()[0].samples if sample.name.endswith("_total")]
    reasons = {one["reason"] for one in found if one["result"] == "RolledBack"}
    assert reasons == {"AnalysisFailed", "ProgressDeadlineExceeded", "Aborted"}
    assert {one["result"] for one in found} == {"Promoted", "RolledBack", "Superseded"}


def weight() -> float | None:
    labels = {"namespace": NAMESPACE, "base": BASE, "adapter": "a"}
    return metrics.REGISTRY.get_sample_value("lorafleet_operator_rollout_weight", labels)


def test_timed_steps_end_in_promotion(story: Story) -> None:
    """Its part of the requests grows, and status never leaves a moment in which the old one is gone."""
    before, promoted = len(story.events()), ended("Promoted")
    old, new = story.revision("p1"), story.revision("p2")
    story.apply()
    story.until(lambda it: it.phase == PROGRESSING)
    assert story.place == (PROGRESSING, 1, [80, 20])
    assert story.stable == old
    assert story.fleet.condition("a") == ("False", "CanaryStep")
    assert story.fleet.condition("a", "Available") == ("True", "Serving")
    assert weight() == 20
    story.wait(3)
    answers = story.answers(200)
    assert answers.keys() == {old, new}
    assert 15 <= answers[new] <= 70
    story.wait(50)
    assert story.place == (PROGRESSING, 1, [80, 20])
    story.wait(10)
    assert story.place == (PROGRESSING, 3, [50, 50])
    story.until(lambda it: it.stable == new, seconds=70)
    assert story.traffic == [[100], [80, 20], [50, 50], [100]]
    assert "rollout" not in story.status
    assert story.fleet.condition("a") == ("True", "Serving")
    assert all(story.held("p1")), "gateways may still ask for it"
    story.wait(10)
    assert not any(story.held("p1"))
    assert story.answers() == {new: 40}
    assert story.history[0] == (new, "Promoted", None)
    assert story.history[1][:2] == (old, None)
    assert story.events()[before:][-4:] == ["CanaryStep", "CanaryStep", "Promoting", "Ready"]
    assert ended("Promoted") == promoted + 1
    assert weight() is None


def test_a_pause_waits_for_a_person_and_is_passed_alone(story: Story) -> None:
    new = story.revision("p2")
    story.apply(steps=GUARDED)
    story.until(lambda it: it.phase == PAUSED)
    assert story.place == (PAUSED, 1, [80, 20])
    assert story.fleet.condition("a") == ("False", "CanaryPaused")
    assert story.fleet.condition("a", "Reconciling")[0] == "True"
    story.wait(700)
    assert story.place == (PAUSED, 1, [80, 20])
    story.annotate(promote=f"{new}:1")
    story.wait(5)
    assert story.place == (PAUSED, 3, [50, 50])
    story.annotate(promote=f"{new}:3")
    story.until(lambda it: it.stable == new, seconds=30)
    assert story.traffic == [[100], [80, 20], [50, 50], [100]]


def test_promotion_of_the_revision_goes_past_all_steps(story: Story) -> None:
    new = story.revision("p2")
    story.apply(steps=GUARDED)
    story.until(lambda it: it.phase == PAUSED)
    story.annotate(promote=new)
    story.until(lambda it: it.stable == new, seconds=30)
    assert story.traffic == [[100], [80, 20], [100]]


def test_abort_gives_all_requests_back_and_the_revision_leaves(story: Story) -> None:
    """First status, then, when gateways have had time to read it, the pods. It is not tried again by itself."""
    old, new, rolled = story.revision("p1"), story.revision("p2"), ended("RolledBack", "Aborted")
    story.apply(steps=GUARDED)
    story.until(lambda it: it.phase == PAUSED)
    before = len(story.events())
    story.annotate(abort=new)
    story.until(lambda it: it.phase == ROLLED_BACK, seconds=10)
    assert story.place == (ROLLED_BACK, 1, [100])
    assert all(story.held("p2"))
    story.wait(4)
    assert all(story.held("p2"))
    story.wait(6)
    assert not any(story.held("p2"))
    assert story.answers() == {old: 40}
    assert story.fleet.condition("a") == ("False", "Aborted")
    assert story.fleet.condition("a", "Stalled") == ("True", "Aborted")
    assert story.history[0] == (new, "RolledBack", "Aborted")
    assert story.events()[before:] == ["Aborted"]
    assert ended("RolledBack", "Aborted") == rolled + 1
    story.wait(700)
    assert (story.phase, story.stable) == (ROLLED_BACK, old)
    assert len(story.history) == 2
    story.annotate(abort=None, retry="1")
    story.until(lambda it: it.phase == PAUSED)
    assert story.place == (PAUSED, 1, [80, 20])
    assert all(story.held("p2"))


def test_promotion_after_a_roll_back_loads_it_first(story: Story) -> None:
    new = story.revision("p2")
    story.apply(steps=GUARDED)
    story.until(lambda it: it.phase == PAUSED)
    story.annotate(abort=new)
    story.wait(30)
    assert not any(story.held("p2"))
    story.annotate(abort=None, promote=new)
    story.until(lambda it: it.stable == new, seconds=30)
    assert story.traffic == [[100], [80, 20], [100]]
    assert [result for _, result, _ in story.history] == ["Promoted", "RolledBack", None]


def test_another_revision_in_the_middle_takes_its_place(story: Story) -> None:
    """What was under way has no request any more before it leaves, and the next one begins at the first step."""
    old, second, third = (story.revision(path) for path in ("p1", "p2", "p3"))
    story.apply(steps=GUARDED)
    story.until(lambda it: it.phase == PAUSED)
    story.wait(30)
    story.apply("p3", steps=GUARDED)
    story.until(lambda it: it.rollout.get("revision") == third and it.phase == PAUSED)
    assert story.place == (PAUSED, 1, [80, 20])
    assert story.traffic == [[100], [80, 20], [100], [80, 20]]
    assert story.history[0] == (second, "Superseded", None)
    story.wait(10)
    assert story.answers(100).keys() == {old, third}
    assert not any(story.held("p2"))


def test_the_stable_revision_wanted_again_ends_it(story: Story) -> None:
    old, second = story.revision("p1"), story.revision("p2")
    story.apply(steps=GUARDED)
    story.until(lambda it: it.phase == PAUSED)
    story.apply("p1", steps=GUARDED)
    story.until(lambda it: it.fleet.is_ready("a"), seconds=20)
    assert story.place == (None, None, [100])
    assert story.history[0] == (second, "Superseded", None)
    story.wait(10)
    assert not any(story.held("p2"))
    assert story.answers() == {old: 40}


@pytest.mark.parametrize("steps", [TIMED, GUARDED], ids=["timed", "guarded"])
def test_an_operator_that_restarts_goes_on_where_it_was(story: Story, steps: list[Json]) -> None:
    story.apply(steps=steps)
    story.until(lambda it: it.place[2] == [80, 20])
    began = story.rollout["stepStartTime"]
    story.wait(20)
    story.do(story.fleet.processes[0].kill())
    story.wait(30)
    assert story.place[1:] == (1, [80, 20])
    assert story.rollout["stepStartTime"] == began
    if steps is TIMED:
        story.until(lambda it: it.stable == it.revision("p2"), seconds=120)
        assert story.traffic == [[100], [80, 20], [50, 50], [100]]


def test_a_status_that_is_lost_begins_at_the_first_step(story: Story) -> None:
    story.apply(steps=GUARDED)
    story.until(lambda it: it.phase == PAUSED)
    story.annotate(promote=f"{story.revision('p2')}:1")
    story.until(lambda it: it.place == (PAUSED, 3, [50, 50]))

    async def lose() -> None:
        body = story.fleet.kube.get(Kind.ADAPTER, NAMESPACE, "a")
        kept = {name: value for name, value in body["status"].items() if name not in ("rollout", "traffic")}
        story.fleet.kube.put(Kind.ADAPTER, {**body, "status": kept})

    story.do(lose())
    story.wait(20)
    assert story.place == (PAUSED, 1, [80, 20]), "what was promoted before it was lost is not taken for an answer"
    assert story.traffic[-3:] == [[50, 50], [], [80, 20]]


def test_nothing_is_asked_of_a_revision_that_fails_to_load(story: Story) -> None:
    old = story.revision("p1")
    story.apply("bad-load")
    story.wait(100)
    assert story.place == ("Loading", 0, [100])
    assert story.fleet.condition("a") == ("False", "BaseModelMismatch")
    assert story.answers() == {old: 40}


def test_suspension_keeps_it_where_it_is(story: Story) -> None:
    story.apply()
    story.until(lambda it: it.phase == PROGRESSING)

    def suspend(is_suspended: bool) -> None:
        async def put() -> None:
            body = story.fleet.kube.get(Kind.ADAPTER, NAMESPACE, "a")
            story.fleet.kube.put(Kind.ADAPTER, {**body, "spec": {**body["spec"], "suspend": is_suspended}})

        story.do(put())

    suspend(True)
    story.wait(500)
    assert story.place == (PAUSED, 1, [80, 20])
    assert story.fleet.condition("a") == ("False", "Suspended")
    suspend(False)
    story.wait(30)
    assert story.place == (PROGRESSING, 1, [80, 20])
    story.until(lambda it: it.stable == it.revision("p2"), seconds=150)


def test_a_pod_that_dies_in_the_middle_stops_no_step(story: Story) -> None:
    story.apply()
    story.until(lambda it: it.phase == PROGRESSING)
    story.do(story.fleet.kill(next(iter(story.fleet.pods))))
    story.wait(20)
    story.do(story.fleet.pod())
    story.until(lambda it: it.stable == it.revision("p2"), seconds=200)
    assert story.traffic == [[100], [80, 20], [50, 50], [100]]


def test_a_base_without_pods_is_no_failure_of_the_revision(story: Story) -> None:
    story.apply()
    story.until(lambda it: it.phase == PROGRESSING)
    for name in list(story.fleet.pods):
        story.do(story.fleet.kill(name))
    story.wait(1000)
    assert story.place == (PAUSED, 1, [80, 20])
    story.do(story.fleet.pod())
    story.until(lambda it: it.phase == PROGRESSING, seconds=60)
    story.until(lambda it: it.stable == it.revision("p2"), seconds=200)


@pytest.mark.parametrize("on_failure", ["Rollback", "Pause"])
def test_a_pod_that_cannot_be_seen_ends_it_at_the_deadline(story: Story, on_failure: str) -> None:
    """Nobody knows whether requests that arrive there can be answered with it."""
    story.apply(onFailure=on_failure, progressDeadlineSeconds=100)
    story.until(lambda it: it.phase == PROGRESSING)
    next(iter(story.fleet.pods.values())).mute()
    story.wait(130)
    assert story.place == (PROGRESSING, 1, [80, 20])
    assert "does not answer the operator" in story.rollout["message"]
    story.wait(40)
    if on_failure == "Rollback":
        assert story.place == (ROLLED_BACK, 1, [100])
    else:
        assert story.place == (PAUSED, 1, [80, 20])
    assert story.fleet.condition("a", "Stalled") == ("True", "ProgressDeadlineExceeded")


def test_steps_of_the_base_are_those_of_its_adapters_unless_they_say_otherwise() -> None:
    it = Story(lora={"rollout": {"steps": GUARDED}})
    assert it.place == (None, None, [100])
    it.apply("p2", steps=[])
    it.until(lambda it: it.stable == it.revision("p2"), seconds=20)
    assert "traffic" not in it.status, "an adapter without steps has no shares"

    async def plain() -> None:
        it.fleet.adapter("a", "p3")

    it.do(plain())
    it.until(lambda it: it.phase == PAUSED)
    assert it.place == (PAUSED, 1, [80, 20])
    it.close()


def test_an_adapter_without_steps_moves_at_once(story: Story) -> None:
    story.apply(steps=[])
    story.until(lambda it: it.stable == it.revision("p2"), seconds=20)
    assert story.traffic == []
    assert [result for _, result, _ in story.history] == [None, None]


def test_steps_that_are_taken_away_let_it_move_at_once(story: Story) -> None:
    story.apply(steps=GUARDED)
    story.until(lambda it: it.phase == PAUSED)
    story.apply(steps=[])
    story.until(lambda it: it.stable == it.revision("p2"), seconds=20)
    assert "traffic" not in story.status


def test_nothing_is_written_while_a_step_takes_its_time(story: Story) -> None:
    story.apply(steps=[{"setWeight": 20}, {"pause": {"durationSeconds": 5000}}])
    story.until(lambda it: it.phase == PROGRESSING)
    story.wait(30)
    before = [write for write in story.fleet.kube.writes if "loraadapters" in write]
    story.wait(500)
    assert [write for write in story.fleet.kube.writes if "loraadapters" in write] == before


def test_a_good_revision_is_promoted_by_what_gateways_count(story: Story) -> None:
    new = story.revision("p2")
    story.judged(20, onFailure="Rollback")
    assert story.place == (PROGRESSING, 0, [80, 20])
    story.judged(15)
    assert story.place == (PROGRESSING, 1, [80, 20])
    assert story.evidence["judgement"] == "Good"
    assert story.evidence["canary"]["requests"] >= 20
    assert story.evidence["gateways"] == 1
    story.judged(45)
    assert story.stable == new
    assert story.traffic == [[100], [80, 20], [50, 50], [100]]
    assert story.history[0] == (new, "Promoted", None)


@pytest.mark.parametrize("error", [ErrorClass.SERVER_ERROR, ErrorClass.STREAM_ERROR, ErrorClass.ADAPTER_FAILED])
def test_a_revision_that_fails_is_taken_back_by_itself(story: Story, error: ErrorClass) -> None:
    """At the first window, with the weight of the first step; the old one answers everything from then on."""
    old, new, before = story.revision("p1"), story.revision("p2"), ended("RolledBack", "AnalysisFailed")
    story.gateway.fails[new] = error
    story.judged(60, until=ROLLED_BACK, onFailure="Rollback")
    assert story.place == (ROLLED_BACK, 0, [100])
    assert story.traffic == [[100], [80, 20], [100]]
    assert story.fleet.condition("a") == ("False", "AnalysisFailed")
    assert story.evidence["judgement"] == "Bad"
    assert "100.0 % of" in story.rollout["message"]
    assert story.history[0] == (new, "RolledBack", "AnalysisFailed")
    assert story.events()[-1] == "AnalysisFailed"
    assert ended("RolledBack", "AnalysisFailed") == before + 1
    story.wait(12)
    assert story.answers() == {old: 40}
    assert not any(story.held("p2"))
    story.judged(400)
    assert (story.phase, story.stable) == (ROLLED_BACK, old)


def test_a_revision_that_is_slow_is_taken_back(story: Story) -> None:
    story.gateway.first_byte_seconds[story.revision("p2")] = 2.0
    story.judged(60, until=ROLLED_BACK, onFailure="Rollback")
    assert "95 % of first bytes" in story.rollout["message"]


def test_with_on_failure_pause_a_person_decides(story: Story) -> None:
    new = story.revision("p2")
    story.gateway.fails[new] = ErrorClass.SERVER_ERROR
    story.judged(60, until=PAUSED, onFailure="Pause")
    assert story.place == (PAUSED, 0, [80, 20])
    assert story.fleet.condition("a", "Stalled") == ("True", "AnalysisFailed")
    story.wait(1000)
    assert story.place == (PAUSED, 0, [80, 20])
    story.gateway.fails.clear()
    story.annotate(promote=f"{new}:0")
    story.judged(70)
    assert story.stable == new


def test_pickers_of_an_inference_pool_are_told_the_weights() -> None:
    """They are told what status says, and no revision that pods do not have: old ones stay until nobody names them."""
    pool = {"endpointPickerRef": {"name": "epp"}, "modelRewrite": "Managed"}
    story = Story(routing={"inferencePool": pool})
    new, other = story.revision("p2"), story.revision("p3")

    def told() -> dict[str, int]:
        body = story.fleet.kube.get("inferencemodelrewrites", NAMESPACE, BASE)
        targets = {one["modelRewrite"]: one["weight"] for rule in body["spec"]["rules"] for one in rule["targets"]}
        for path in ("p2", "p3"):
            assert f"a@{story.revision(path)}" not in targets or all(story.held(path)), "what is named is there"
        return targets

    def becomes(targets: dict[str, int]) -> None:
        for _ in range(100):
            if told() == targets:
                return
            story.wait(0.1)
        raise AssertionError((told(), story.status))

    try:
        becomes({})
        story.apply(steps=GUARDED)
        becomes({"a": 80, f"a@{new}": 20})
        story.until(lambda it: it.phase == PAUSED)
        story.annotate(promote=f"{new}:1")
        becomes({"a": 50, f"a@{new}": 50})
        story.until(lambda it: it.phase == PAUSED)
        story.annotate(promote=f"{new}:3")
        becomes({})
        story.until(lambda it: it.stable == new and it.held("p1") == [False, False])
        story.apply("p3", steps=GUARDED)
        becomes({"a": 80, f"a@{other}": 20})
        story.annotate(abort=other)
        becomes({})
        story.until(lambda it: it.held("p3") == [False, False])
        assert told() == {}
    finally:
        story.close()


QUERY = {
    "name": "good-answers",
    "query": 'good{revision="$(revision)"}[$(window)] / good{revision="$(stable)"}[$(window)]',
    "thresholdRange": {"min": 0.9},
}


def test_a_query_to_prometheus_is_asked_over_the_window_and_takes_a_revision_back(story: Story) -> None:
    """What gateways count is well all the time."""
    old, new, asked = story.revision("p1"), story.revision("p2"), []

    def answer(query: str) -> Reading:
        asked.append(query)
        return Reading(0.95 if len(asked) == 1 else 0.5)

    story.fleet.prometheus = answer
    story.apply(steps=JUDGED, analysis={**ANALYSIS, "prometheus": [QUERY]})
    story.judged(36)
    assert story.place == (PROGRESSING, 1, [80, 20])
    assert story.evidence["message"].endswith("0 lost with their pods, good-answers is 0.95")
    assert f'good{{revision="{new}"}}[30s] / good{{revision="{old}"}}[30s]' in asked
    story.judged(60, until=ROLLED_BACK)
    assert story.fleet.condition("a") == ("False", "AnalysisFailed")
    assert "good-answers is 0.5, and at least 0.9 is needed" in story.rollout["message"]


def test_a_query_without_an_answer_is_never_good(story: Story) -> None:
    story.fleet.prometheus = lambda _: Reading(None, "Prometheus does not answer: TimeoutError")
    analysis = {"windowSeconds": 30, "minRequests": 20, "prometheus": [QUERY]}
    story.apply(steps=JUDGED, analysis=analysis, progressDeadlineSeconds=120)
    story.judged(100)
    assert story.place == (PROGRESSING, 0, [80, 20])
    assert story.evidence["judgement"] == "Inconclusive"
    story.judged(60, until=ROLLED_BACK)
    assert story.fleet.condition("a") == ("False", "ProgressDeadlineExceeded")
    assert "good-answers is not known: Prometheus does not answer: TimeoutError" in story.rollout["message"]


def test_what_is_wrong_in_a_pause_is_seen_too(story: Story) -> None:
    new = story.revision("p2")
    story.apply(steps=GUARDED, analysis=ANALYSIS)
    story.judged(60, until=PAUSED)
    story.gateway.fails[new] = ErrorClass.SERVER_ERROR
    story.judged(60, until=ROLLED_BACK)
    assert story.place == (ROLLED_BACK, 1, [100])


def test_a_silent_gateway_is_never_good_and_ends_at_the_deadline(story: Story) -> None:
    story.fleet.is_gateway_silent = True
    story.judged(100, onFailure="Rollback", progressDeadlineSeconds=120)
    assert story.place == (PROGRESSING, 0, [80, 20])
    assert story.evidence["judgement"] == "Inconclusive"
    assert story.evidence["silentGateways"] == 1
    story.judged(60, until=ROLLED_BACK)
    assert story.fleet.condition("a") == ("False", "ProgressDeadlineExceeded")
    assert "1 of 1 gateways do not answer" in story.rollout["message"]


def test_a_gateway_that_is_heard_again_loses_nothing(story: Story) -> None:
    story.judged(15, onFailure="Rollback")
    story.fleet.is_gateway_silent = True
    story.judged(60)
    assert story.place == (PROGRESSING, 0, [80, 20])
    story.fleet.is_gateway_silent = False
    story.judged(80)
    assert story.stable == story.revision("p2")


def test_a_fleet_without_requests_is_never_good(story: Story) -> None:
    story.apply(steps=JUDGED, analysis=ANALYSIS, progressDeadlineSeconds=120)
    story.wait(140)
    assert story.place == (PROGRESSING, 0, [80, 20])
    assert story.evidence["message"] == "0 requests of 20 that are needed"
    story.until(lambda it: it.phase == ROLLED_BACK, seconds=30)


def test_an_operator_that_restarts_judges_by_a_window_of_its_own(story: Story) -> None:
    """What failed before it looked is not held against the revision, and nothing is good before its window is over."""
    new = story.revision("p2")
    story.judged(25, onFailure="Rollback")
    story.do(story.fleet.processes[0].kill())
    story.judged(20)
    assert story.place == (PROGRESSING, 0, [80, 20])
    story.gateway.fails[new] = ErrorClass.SERVER_ERROR
    story.judged(60, until=ROLLED_BACK)


def test_pods_that_take_requests_of_both_with_them_roll_nothing_back(story: Story) -> None:
    """Whatever was on a pod that is killed is lost: a few requests of each, once."""
    old, new = story.revision("p1"), story.revision("p2")
    story.judged(15, onFailure="Rollback")
    story.gateway.fails.update({old: ErrorClass.STREAM_BROKEN, new: ErrorClass.STREAM_BROKEN})
    story.answers(30)
    story.gateway.fails.clear()
    story.judged(100)
    assert story.stable == new


def test_analysis_of_the_base_is_that_of_its_adapters() -> None:
    it = Story(lora={"rollout": {"steps": JUDGED, "analysis": ANALYSIS}})
    it.gateway.fails[it.revision("p2")] = ErrorClass.SERVER_ERROR

    async def plain() -> None:
        it.fleet.adapter("a", "p2", placement={"mode": "All"})

    it.do(plain())
    it.until(lambda it: it.phase == PROGRESSING)
    it.judged(60, until=ROLLED_BACK)
    it.close()
