"""What passes remember of each other changes nothing of what they come to."""

import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

from support import operator_views as v
from support.operator_views import KEY, NOW

from lorafleet_contract.admin import AdapterState, Owner, PodState, Residency, Tier
from lorafleet_contract.resources import AdapterResource
from lorafleet_operator.decide.adapter_status import adapter_status
from lorafleet_operator.decide.plan import PassMemory, changes_of, next_leave, plan_of
from lorafleet_operator.decide.remembered import Remembered
from lorafleet_operator.decide.views import Claim, ObservedPod, Snapshot

NAMES = [f"a{number}" for number in range(6)]


class Story:
    """A base whose pods and adapters change at random; statuses are written as they are made."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.adapters = {name: v.adapter(name, status=v.served(name)) for name in NAMES}
        self.pods = [
            v.seen(*(v.entry(name, name) for name in NAMES), pod=v.pod(f"p{n}"), slots=8, rank_pages=64)
            for n in range(4)
        ]
        self.now = NOW
        self.base, self.claims, self.published_at = v.base(), dict[str, Claim](), dict[str, Any]()
        self.are_orphans_known = True

    def step(self) -> None:
        self.now += timedelta(seconds=self.random.choice([0, 1, 5, 700]))
        kinds = [self._entry, self._pod, self._spec, self._nothing, self._elsewhere]
        for change in self.random.choices(kinds, weights=[4, 3, 3, 4, 1], k=2):
            change()

    def _nothing(self) -> None:
        pass

    def _entry(self) -> None:
        at = self.random.randrange(len(self.pods))
        entries = {(e.name, e.revision): e for e in self.pods[at].entries}
        name = self.random.choice(NAMES)
        new = v.entry(
            self.random.choice([name, f"{name}-v2"]),
            name,
            state=self.random.choice([AdapterState.READY, AdapterState.FAILED, AdapterState.LOADING]),
            residency=self.random.choice(list(Residency)),
            tier=self.random.choice([Tier.DEVICE, Tier.DISK]),
            stable=self.random.random() < 0.7,
            pinned=self.random.random() < 0.2,
            owner=self.random.choice([Owner.OPERATOR] * 9 + [Owner.LOCAL]),
            reason=self.random.choice(["", "OutOfMemory"]),
        )
        if entries and self.random.random() < 0.3:
            entries.pop(self.random.choice(list(entries)))
        self._say(at, adapters=list({**entries, (new.name, new.revision): new}.values()))

    def _pod(self) -> None:
        at = self.random.randrange(len(self.pods))
        known = self.pods[at]
        what = self.random.choice([0, 1, 2, 3, 4, 4, 4])
        if what == 0:
            pod = replace(known.pod, is_ready=not known.pod.is_ready)
            self.pods[at] = ObservedPod(pod, known.state)
        elif what == 1:
            self.pods[at] = ObservedPod(known.pod, None if known.state is not None else v.seen(pod=known.pod).state)
        elif what == 2:
            self._say(at, draining=self.random.random() < 0.5)
        elif what == 3:
            self._say(at, fence=self.random.choice([0, 1, 3]))
        elif known.state is not None:
            rooms = {
                "total_rank_pages": self.random.choice([1, 64]),
                "max_resident_adapters": self.random.choice([1, 8]),
            }
            self._say(at, budgets=known.state.budgets.model_copy(update=rooms))

    def _say(self, at: int, **said: Any) -> None:
        known = self.pods[at]
        if known.state is not None:
            state: PodState = known.state.model_copy(update=said)
            before = known if self.random.random() < 0.8 else None
            self.pods[at] = ObservedPod(known.pod, state, before)

    def _spec(self) -> None:
        name = self.random.choice(NAMES)
        spec = self.random.choice(
            [
                {"source": {"name": "models", "path": f"{name}-v2"}},
                {"placement": {"mode": "All"}},
                {"placement": {"replicas": 2, "pin": True}},
                {"suspend": True},
                {},
            ]
        )
        status = self.adapters[name].status.model_dump(mode="json", by_alias=True, exclude_none=True)
        self.adapters[name] = v.adapter(name, status=status, **spec)

    def _elsewhere(self) -> None:
        """The base, and who has which name."""
        self.base = v.base(
            **self.random.choice([{}, {}, {"lora": {"loadOnDemand": "Disabled"}}, {"adapterSources": []}])
        )
        rivals = self.random.sample(NAMES, self.random.choice([0, 0, 1]))
        self.claims = {name: Claim("uid-older", "LoraAdapter other/older") for name in rivals}
        self.published_at = {f"uid-{name}": self.now for name in self.random.sample(NAMES, 1)}
        self.are_orphans_known = self.random.random() < 0.8

    def snapshot(self) -> Snapshot:
        it = v.snapshot(*self.adapters.values(), base=self.base)
        return replace(
            it,
            now=self.now,
            claims={**it.claims, **self.claims},
            published_at=self.published_at,
            are_orphans_known=self.are_orphans_known,
        )

    def write(self, name: str, status: Any) -> None:
        self.adapters[name] = self.adapters[name].model_copy(update={"status": status})


def resolutions(adapters: list[AdapterResource]) -> dict[Any, Any]:
    from lorafleet_operator.decide.intent import resolve_key

    return {
        resolve_key(a): v.artifact(str(a.spec.source.path)) for a in adapters if str(a.spec.source.path).endswith("2")
    }


def test_statuses_and_changes_are_those_of_a_pass_that_remembers_nothing() -> None:
    num_made = num_all = 0
    for seed in range(40):
        story, remembered, memory = Story(seed), Remembered(), PassMemory()
        for _ in range(25):
            story.step()
            adapters = list(story.adapters.values())
            snapshot = story.snapshot()
            plan = plan_of(snapshot, story.pods, resolutions(adapters), memory=memory)
            assert plan == plan_of(snapshot, story.pods, resolutions(adapters))
            retried = frozenset(story.random.sample(NAMES, story.random.choice([0, 0, 2])))
            fence = story.random.choice([1, 3])
            given = {"fence": fence, "retried": retried}
            assert changes_of(plan, snapshot, story.pods, memory=memory, **given) == [
                change for pod in story.pods for change in changes_of(plan, snapshot, [pod], **given)
            ]
            told = [pod for pod in story.pods if pod.is_writable]
            assert next_leave(plan, story.pods, story.now, memory) == next_leave(plan, told, story.now)
            made = remembered.begin(KEY, story.pods, plan.placement)
            for lineup in plan.lineups:
                expected = adapter_status(lineup, story.pods, plan.placement, now=story.now)
                assert made.of(lineup, story.now) == expected
                if story.random.random() < 0.8:
                    story.write(lineup.name, expected)
            num_made, num_all = num_made + made.num_made, num_all + len(plan.lineups)
    assert num_made < 0.8 * num_all, "something is remembered"
    remembered.forget(KEY)


def test_a_pod_is_the_same_whether_or_not_it_is_made_of_what_it_was() -> None:
    for seed in range(30):
        draw = random.Random(seed)
        known = [
            v.entry(draw.choice(["x", "y", "z"]), f"n{draw.randrange(6)}", stable=draw.random() < 0.5)
            for _ in range(30)
        ]
        before = None
        for _ in range(12):
            told = list({(e.name, e.revision): e for e in known if draw.random() < 0.4}.values())
            state = None if draw.random() < 0.1 else v.seen(*told, pod=v.pod()).state
            made, fresh = ObservedPod(v.pod(), state, before), ObservedPod(v.pod(), state)
            assert made == fresh
            assert {n: set(map(id, es)) for n, es in made.own_by_name.items()} == {
                n: set(map(id, es)) for n, es in fresh.own_by_name.items()
            }
            assert dict(made.own_by_revision) == dict(fresh.own_by_revision)
            before = made


def test_an_artifact_from_elsewhere_makes_another_entry() -> None:
    memory, pods = PassMemory(), [v.seen(pod=v.pod(), fence=0)]

    def told(path: str) -> str | None:
        artifact = v.artifact("one", path=path).model_dump(mode="json", by_alias=True, exclude_none=True)
        adapter = v.adapter(
            "one", status={**v.served("one"), "artifact": artifact}, source={"name": "models", "path": path}
        )
        snapshot = v.snapshot(adapter, base=v.base())
        (change,) = changes_of(plan_of(snapshot, pods, {}), snapshot, pods, fence=1, memory=memory)
        return change.entries[0].source.ref.path

    assert [told("here"), told("here"), told("there")] == ["here", "here", "there"]


def test_a_fleet_that_stands_still_makes_no_status_again() -> None:
    story, remembered = Story(1), Remembered()
    for number in range(4):
        snapshot = v.snapshot(*story.adapters.values(), base=v.base())
        plan = plan_of(snapshot, story.pods, {})
        made = remembered.begin(KEY, story.pods, plan.placement)
        for lineup in plan.lineups:
            story.write(lineup.name, made.of(lineup, story.now)) if number == 0 else made.of(lineup, story.now)
        assert made.num_made == (0 if number > 1 else len(NAMES))
        # pods say the same again, and more of what does not matter
        story.pods = [ObservedPod(p.pod, p.state.model_copy(update={"generation": number + 9})) for p in story.pods]


def test_room_on_a_pod_is_not_taken_for_what_it_was() -> None:
    """What is pinned beside an adapter, and in how large a pod, decides whether it is answered, and is in no entry of its own."""
    story, remembered = Story(1), Remembered()
    quiet = v.entry("a0", "a0", residency=Residency.ON_DEMAND, tier=Tier.DISK)

    def ready(*, pinned: bool, slots: int) -> str:
        other = v.entry("a1", "a1", pinned=pinned)
        pods = [v.seen(quiet, other, pod=v.pod(), slots=slots, rank_pages=64)]
        plan = plan_of(v.snapshot(story.adapters["a0"], base=v.base()), pods, {})
        made = remembered.begin(KEY, pods, plan.placement)
        status = made.of(plan.lineups[0], story.now)
        assert made.of(plan.lineups[0], story.now) == status
        story.write("a0", status)
        return next(c.reason for c in status.conditions if c.type == "Available")

    said = [
        ready(pinned=pinned, slots=slots) for pinned, slots in ((False, 1), (False, 1), (True, 1), (True, 1), (True, 2))
    ]
    assert said == ["Serving", "Serving", "InsufficientSlots", "InsufficientSlots", "Serving"]
