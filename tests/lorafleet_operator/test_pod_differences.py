"""What is known of pods by differences is what they say as a whole: with writes beside polls, lost answers, new boots, old pods."""

import asyncio
import random
from collections.abc import Mapping

import pytest
from support import operator_views as v
from support.fake_pod import Library
from support.fake_pod import Refused as PodRefusal
from support.simulated_fleet import until
from support.virtual_fleet import VirtualPod
from support.virtual_time import VirtualLoop

from lorafleet_contract import admin
from lorafleet_contract.base import Wire
from lorafleet_contract.names import revision_of
from lorafleet_contract.sources import SourceRef
from lorafleet_operator.act.admin_client import AdminClient
from lorafleet_operator.act.pod_states import PodStates
from lorafleet_operator.act.pod_watch import PodWatches
from lorafleet_operator.decide.demand import MIN_SECONDS, Demand
from lorafleet_operator.decide.views import ObservedPod
from lorafleet_operator.errors import AdminError, PodRefused, PodUnreachable

NAMES = ["french", "german", "dutch"]
POD = v.pod()


class Pod(VirtualPod):
    """A pod that nobody audits."""

    def take(self, write: admin.CatalogueWrite) -> None:
        super(VirtualPod, self).take(write)


class Client(AdminClient):
    """The one pod, over a network that loses requests and answers."""

    def __init__(self, pod: Pod, draw: random.Random, *, loses: float) -> None:
        self.pod, self._draw, self._loses = pod, draw, loses
        self._states = PodStates()
        self.read_bytes = 0

    async def _request(
        self,
        method: str,
        ip: str,
        path: str,
        token: str,
        limit_seconds: float,
        *,
        query: Mapping[str, str] | None = None,
        body: Wire | None = None,
    ) -> bytes:
        if self._draw.random() < self._loses:
            raise PodUnreachable("lost on the way")
        await asyncio.sleep(self._draw.choice([0.0, 0.01, 0.1]))
        try:
            answer = await self.pod.answer(method, path, query or {}, body)
        except PodRefusal as refusal:
            raise PodRefused(refusal.status, refusal.error.reason, refusal.error.message, retryable=False) from None
        except ConnectionResetError as error:
            raise PodUnreachable("it has ended") from error
        await asyncio.sleep(self._draw.choice([0.0, 0.01, 0.1]))
        if self._draw.random() < self._loses:
            raise PodUnreachable("lost on the way back")
        raw = answer.model_dump_json(by_alias=True, exclude_none=True).encode() if answer is not None else b""
        self.read_bytes += len(raw)
        return raw


def without_counters(state: admin.PodState) -> tuple[dict[str, object], admin.PodState]:
    nothing = {"num_in_flight": 0, "last_used": None, "num_tokens": None}
    entries = {f"{a.name}@{a.revision}": a.model_copy(update=nothing) for a in state.adapters}
    assert len(entries) == len(state.adapters)
    return dict(entries), state.model_copy(update={"adapters": []})


class Life:
    """What happens to one pod and to whoever watches it."""

    def __init__(self, seed: int, *, loses: float = 0.15, is_old: bool = False) -> None:
        self.draw = random.Random(seed)
        self.library = Library()
        self.pod = Pod(self.library)
        self.pod.tells_differences = not is_old
        self.client = Client(self.pod, self.draw, loses=loses)
        self.watches = PodWatches(self.client, lambda _: None, whole_seconds=30.0)
        self.number = 0

    def begin(self) -> None:
        self.watches.sync(v.KEY, [POD], "token")

    @property
    def seen(self) -> admin.PodState:
        """As it is known."""
        found = self.watches.known(POD.uid)
        assert found is not None
        return found

    def knows(self, generation: int) -> bool:
        found = self.watches.known(POD.uid)
        return found is not None and (found.boot_id, found.generation) == (self.pod.boot_id, generation)

    async def step(self) -> None:
        draw, pod = self.draw, self.pod
        what = draw.random()
        if what < 0.6:
            await self.write()
        elif what < 0.65:
            pod.restart()
        elif what < 0.7:
            pod.add_local(f"local-{draw.randint(0, 2)}", "path")
        elif what < 0.8:
            pod.load_seconds, pod.drain_seconds = draw.choice([0.0, 0.3]), draw.choice([0.0, 0.5])
        elif pod.entries:
            entry = draw.choice(list(pod.entries.values()))
            entry.num_tokens += 10
            if draw.random() < 0.5:  # it says so later, if at all
                entry.state = draw.choice([admin.AdapterState.READY, admin.AdapterState.FAILED])
                pod.is_draining = draw.random() < 0.1
        await asyncio.sleep(draw.choice([0.0, 0.02, 0.2, 1.0]))

    async def write(self) -> None:
        draw = self.draw
        self.number += 1
        names = draw.sample(NAMES, draw.randint(0, 2))
        sources = {
            name: self.library.resolve(SourceRef(name="m", path=f"{name}-{draw.randint(0, 1)}")) for name in names
        }
        entries = [
            admin.CatalogueEntry(name=name, source=source, residency=draw.choice(list(admin.Residency)))
            for name, source in sources.items()
        ]
        gone = [
            admin.RevisionRef(name=name, revision=revision)
            for name, revision in self.pod.entries
            if draw.random() < 0.2 and not name.startswith("local")
        ]
        assert all(revision_of(source.digest) for source in sources.values())
        write = admin.CatalogueWrite(fence=1, generation=self.number, adapters=entries, removed=gone)
        known = self.watches.known(POD.uid)
        try:
            self.watches.heard(POD.uid, await self.client.write("ip", "token", write, known))
        except AdminError:
            self.watches.doubt(POD.uid)

    async def is_seen_as_it_is(self) -> None:
        """Once nothing is lost and nothing moves."""
        self.client._loses = 0.0
        self.pod._bump()
        await asyncio.sleep(2.0)
        await until("seen", lambda: self.knows(self.pod.generation))
        assert without_counters(self.seen) == without_counters(self.pod.state())


def lived(life: Life, num_steps: int, num_looks: int) -> None:
    async def run() -> None:
        life.begin()
        for _ in range(num_looks):
            for _ in range(num_steps):
                await life.step()
            loses = life.client._loses
            await life.is_seen_as_it_is()
            life.client._loses = loses
        await life.watches.close()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())


@pytest.mark.parametrize("seed", range(25))
def test_view_by_differences_is_that_of_whole_documents(seed: int) -> None:
    life = Life(seed)
    lived(life, num_steps=12, num_looks=4)
    assert life.pod.num_differences > 0


@pytest.mark.parametrize("seed", range(3))
def test_pod_that_answers_whole_is_seen_as_well(seed: int) -> None:
    life = Life(seed, is_old=True)
    lived(life, num_steps=12, num_looks=4)
    assert life.pod.num_differences == 0


def test_a_change_costs_by_what_has_changed() -> None:
    life = Life(0, loses=0.0)

    async def run() -> tuple[int, int]:
        life.begin()
        for number in range(200):
            life.pod.add_local(f"other-{number}", f"path-{number}")
        await until("seen", lambda: life.knows(life.pod.generation))
        whole, life.client.read_bytes = life.client.read_bytes, 0
        await life.write()
        await life.is_seen_as_it_is()
        await life.watches.close()
        return whole, life.client.read_bytes

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        whole, changed = runner.run(run())
    assert changed < whole / 10


def test_difference_to_another_document_is_no_answer() -> None:
    state = v.seen(v.entry("a", "french"), pod=POD).state
    assert state is not None
    difference = admin.PodDifference(**{**dict(state), "generation": 9}, since=8)
    raw = difference.model_dump_json(by_alias=True).encode()
    states = PodStates()
    for known in (state, state.model_copy(update={"boot_id": "x", "generation": 8})):
        with pytest.raises(ValueError, match="a difference to generation 8 of boot b, where generation"):
            states.read_news(raw, known)
    assert states.read_news(raw, state.model_copy(update={"generation": 8})).generation == 9


def test_differences_do_not_add_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's image is its owner's, and each answer is short."""
    monkeypatch.setattr(admin, "MAX_ENTRIES", 8)
    entries = [v.entry("x", f"a{number}") for number in range(9)]
    seen = v.seen(*entries[:4], pod=POD).state
    assert seen is not None
    fields = {**seen.model_dump(), "since": seen.generation, "generation": seen.generation + 1}
    fits, not_any_more = (
        admin.PodDifference.model_validate({**fields, "adapters": more}) for more in (entries[4:8], entries[4:9])
    )
    assert len(fits.applied_to(seen).adapters) == 8
    with pytest.raises(ValueError, match="more than 8 entries in all"):
        not_any_more.applied_to(seen)


def test_entries_of_differences_are_those_of_whole_documents() -> None:
    states, entries = PodStates(), [v.entry(f"content-{n}", f"name-{n}") for n in range(30)]
    state = v.seen(*entries, pod=POD).state
    assert state is not None
    whole = states.read(state.model_dump_json(by_alias=True).encode())
    then = state.model_copy(update={"adapters": [], "generation": 0})
    difference = admin.PodDifference(**dict(state), since=0)
    merged = states.read_news(difference.model_dump_json(by_alias=True).encode(), then)
    assert all(a is b for a, b in zip(merged.adapters, whole.adapters, strict=True))
    assert type(merged) is admin.PodState
    assert merged == state


def test_demand_counts_by_documents_that_told_all_counters() -> None:
    """A difference tells of no counters: that a pod has been heard of says nothing of what was asked of it."""

    def state(tokens: int, generation: int) -> admin.PodState:
        found = v.seen(v.entry("a", "french", num_tokens=tokens), pod=POD).state
        assert found is not None
        return found.model_copy(update={"generation": generation})

    demand, first, later = Demand(), state(0, 1), state(6000, 9)
    demand.look([ObservedPod(POD, first, counted=first)], 100.0)
    demand.look([ObservedPod(POD, state(0, 5), counted=first)], 100.0 + 5 * MIN_SECONDS)
    assert demand.rates.get("french", 0.0) == 0.0
    demand.look([ObservedPod(POD, later, counted=later)], 100.0 + 6 * MIN_SECONDS)
    demand.look([ObservedPod(POD, state(6000, 10), counted=later)], 100.0 + 60 * MIN_SECONDS)
    assert demand.rates["french"] == pytest.approx(100.0, rel=0.01)
