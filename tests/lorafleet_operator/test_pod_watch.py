"""What is kept of pods: newer answers replace older ones, an error of ours ends no watch, silence is not taken at once."""

import asyncio
from dataclasses import replace

import pytest
from support import operator_views as v
from support.leftovers import left_over
from support.simulated_fleet import until

from lorafleet_common import supervise as supervised
from lorafleet_common.supervise import supervise
from lorafleet_contract.admin import PodState, StartProgress, StartStep
from lorafleet_operator.act.pod_watch import PodWatches
from lorafleet_operator.decide.views import BaseKey
from lorafleet_operator.errors import PodRefused, PodUnreachable

Answer = PodState | Exception | None
"""None: nothing but counters has changed."""
POD = v.pod()


class Pods:
    """An admin client whose answers stand in a list; without one a poll waits."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = asyncio.Queue[Answer]()
        self.num_asked = 0
        self.known: list[tuple[int, str | None]] = []
        """What polls said that the operator has."""
        self.tell(*answers)

    def tell(self, *answers: Answer) -> None:
        for answer in answers:
            self.answers.put_nowait(answer)

    async def state(self, ip: str, token: str) -> PodState | None:
        self.num_asked += 1
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def changed_state(
        self, ip: str, token: str, known: PodState, *, with_counters: bool = False
    ) -> PodState | None:
        self.known.append((known.generation, None if with_counters else known.boot_id))
        return await self.state(ip, token)


def said(generation: int, boot: str = "boot") -> PodState:
    state = v.seen(pod=POD, fence=generation).state
    assert state is not None
    return state.model_copy(update={"boot_id": boot, "generation": generation})


def loading(percent: int) -> PodRefused:
    start = StartProgress(step=StartStep.LOADING, percent=percent)
    return PodRefused(503, "Pending", "the base model is still being loaded", retryable=True, start=start)


class Watched:
    def __init__(self, *answers: Answer, whole_seconds: float = 60.0) -> None:
        self.pods, self.woken = Pods(*answers), list[BaseKey]()
        self.watches = PodWatches(self.pods, self.woken.append, whole_seconds=whole_seconds)
        self.watches.sync(v.KEY, [POD], "token")

    @property
    def seen(self) -> PodState | None:
        return self.watches.observe([POD])[0].state


async def test_answer_to_a_write_is_kept_and_an_older_one_is_not() -> None:
    it = Watched(said(1))
    await until("seen", lambda: it.seen == said(1))
    it.watches.heard(POD.uid, said(3))
    assert it.seen == said(3)
    it.pods.tell(said(2))
    await until("taken", it.pods.answers.empty)
    await asyncio.sleep(0.1)
    assert it.seen == said(3)
    assert len(it.woken) == 2
    await it.watches.close()


async def test_answer_of_another_boot_is_asked_for_again() -> None:
    it = Watched(said(1))
    await until("seen", lambda: it.seen == said(1))
    it.watches.heard(POD.uid, said(9, "old boot"))
    assert it.seen == said(1)
    assert not it.watches.are_sure([POD])
    it.pods.tell(said(2, "new boot"))
    await until("seen", lambda: it.seen == said(2, "new boot"))
    assert it.watches.are_sure([POD])
    await it.watches.close()


async def test_one_missed_answer_is_none() -> None:
    it = Watched(said(1), PodUnreachable("no answer"), said(1))
    await until("seen", lambda: it.pods.num_asked >= 4)
    assert it.seen == said(1)
    assert len(it.woken) == 1
    it.pods.tell(PodUnreachable("no answer"), PodUnreachable("again none"))
    await until("seen", lambda: it.seen is None)
    assert len(it.woken) == 2
    before = asyncio.get_running_loop().time()
    it.pods.tell(said(1))
    await until("seen", lambda: it.seen == said(1))
    assert asyncio.get_running_loop().time() - before < 4
    await it.watches.close()


async def test_a_pod_that_loads_says_so_and_not_each_per_cent() -> None:
    """Its base is woken for what its status will say, which is no more than what woke it."""
    waiting = replace(POD, is_ready=False)
    it = Watched(loading(10), loading(12), loading(14))
    await until("all were taken", lambda: it.pods.num_asked == 4)
    assert [pod.stage for pod in it.watches.with_starts([waiting])] == ["Loading 10 %"]
    assert len(it.woken) == 1
    assert it.watches.with_starts([POD]) == (POD,), "one that is ready does not start"
    it.pods.tell(said(1))
    await until("seen", lambda: it.seen is not None)
    assert [pod.stage for pod in it.watches.with_starts([waiting])] != ["Loading 10 %"]
    await it.watches.close()


async def test_what_a_pod_waits_for_it_says_itself() -> None:
    """Its ports are open before its base is loaded, so that Kubernetes knows no more than that it runs."""
    running = replace(POD, is_ready=False, stage="loads the base model, or waits for its first adapters")
    it = Watched(PodUnreachable("no answer"))

    def stage() -> str:
        return it.watches.with_starts([running])[0].stage

    await until("asked", lambda: it.pods.num_asked == 2)
    assert stage() == running.stage
    loads = PodRefused(503, "Pending", "the base model is still being loaded", retryable=True)
    it.pods.tell(loads, loads)
    await until("heard", lambda: it.pods.num_asked == 4)
    assert stage() == "loads the base model"
    assert len(it.woken) == 1
    it.pods.tell(said(1).model_copy(update={"ready": False}))
    await until("seen", lambda: it.seen is not None)
    assert stage() == "waits for its first adapters"
    it.pods.tell(said(2))
    await until("news", lambda: it.seen == said(2))
    assert stage() == "is ready, which its readiness probe has not seen yet"
    it.pods.tell(said(3).model_copy(update={"draining": True}))
    await until("it drains", lambda: it.seen is not None and it.seen.draining)
    assert stage() == "answers what it has begun, and takes nothing new"
    assert it.watches.with_starts([POD]) == (POD,)
    await it.watches.close()


async def test_counters_wake_nobody() -> None:
    it = Watched(said(1))
    await until("seen", lambda: it.seen is not None)
    it.pods.tell(said(1).model_copy(update={"generation": 2}))
    await until("seen", lambda: it.seen is not None and it.seen.generation == 2)
    assert len(it.woken) == 1
    await it.watches.close()


async def test_fault_of_ours_does_not_blind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    it = Watched(said(1), ValueError("odd"), said(5))
    await until("seen", lambda: it.seen == said(5))
    assert "the watch of pod p0 failed; it is begun again" in caplog.text
    await it.watches.close()


async def test_what_ends_is_begun_again(caplog: pytest.LogCaptureFixture) -> None:
    ends = [ValueError("odd"), None]
    done = asyncio.Event()

    async def run() -> None:
        if not ends:
            done.set()
            await asyncio.Event().wait()
        if (error := ends.pop(0)) is not None:
            raise error

    task = asyncio.create_task(supervise("it", run, pause_seconds=0.01))
    await asyncio.wait_for(done.wait(), 60)
    assert "it failed" in caplog.text
    assert "it ended" in caplog.text
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert supervised.PAUSE_SECONDS <= 1


async def test_poll_that_brings_nothing_new_leaves_what_was_said() -> None:
    """It carries no document, wakes nobody, and what passes made of the last one is kept."""
    it = Watched(said(1))
    await until("seen", lambda: it.seen is not None)
    woken, observed = len(it.woken), it.watches.observe([POD])[0]
    it.pods.tell(None, None)
    await until("polled again", lambda: len(it.pods.known) > 2)
    assert set(it.pods.known) == {(1, "boot")}, "it says what it has"
    assert len(it.woken) == woken
    assert it.watches.observe([POD])[0] is observed
    it.pods.tell(said(2))
    await until("news", lambda: it.seen == said(2))
    assert it.watches.observe([POD])[0] is not observed
    await it.watches.close()


async def test_counters_are_asked_for_from_time_to_time() -> None:
    """Nothing else tells of them while a pod stays as it is."""
    it = Watched(said(1), whole_seconds=0.3)
    await until("seen", lambda: it.seen is not None)
    it.pods.tell(None, None, None)
    await until("asked without a boot", lambda: (1, None) in it.pods.known)
    assert (1, "boot") in it.pods.known
    await it.watches.close()


async def test_nothing_is_left_of_a_first_look_that_is_cut() -> None:
    it = Watched()
    before = left_over()
    look = asyncio.create_task(it.watches.first_look([POD]))
    await asyncio.sleep(0.05)
    look.cancel()
    await asyncio.gather(look, return_exceptions=True)
    assert left_over() == before
    await it.watches.close()
