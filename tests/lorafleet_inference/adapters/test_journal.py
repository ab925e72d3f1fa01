"""A difference and what it is a difference to come to what is shown now, whoever asks when, and whatever is forgotten to be told."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.managed_pod import ManagedPod

from lorafleet_contract.admin import Residency, RevisionRef
from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters import journal
from lorafleet_inference.adapters.changes import Generation
from lorafleet_inference.adapters.journal import Journal
from lorafleet_inference.engine.messages import AdapterKey

Shown = dict[AdapterKey, object]
KEYS = [AdapterKey(name, f"sha256:{digit * 64}") for name in ("french", "german") for digit in "ab"]


class Asker:
    """Somebody who knows a document, if any, and asks for what has changed since."""

    def __init__(self) -> None:
        self.known: tuple[int, Shown] | None = None
        self.num_differences = 0

    def ask(self, it: Journal, changes: Generation, shown: Mapping[AdapterKey, object]) -> None:
        it.look(shown)
        difference = it.since(self.known[0]) if self.known is not None else None
        if difference is None or self.known is None:
            self.known = (changes.number, dict(shown))
            return
        self.num_differences += 1
        entries = {key: value for key, value in self.known[1].items() if key not in difference.gone}
        entries |= {key: shown[key] for key in difference.changed}
        self.known = (changes.number, entries)


@given(st.integers(0, 2**32), st.integers(0, 3))
def test_differences_come_to_what_is_shown(seed: int, max_gone: int) -> None:
    draw, changes = random.Random(seed), Generation()
    it, shown, askers = Journal(changes, max_gone=max_gone), Shown(), [Asker() for _ in range(3)]
    for _ in range(60):
        key = draw.choice(KEYS)
        if draw.random() < 0.3:
            shown.pop(key, None)
        elif draw.random() < 0.6:
            shown[key] = draw.randint(0, 2)
        if draw.random() < 0.5:  # who changes something may tell it late
            changes.bump()
        if draw.random() < 0.5:
            asker = draw.choice(askers)
            asker.ask(it, changes, shown)
            assert asker.known == (changes.number, shown)


def test_documents_of_one_generation_show_the_same() -> None:
    changes = Generation()
    it = Journal(changes)
    it.look({KEYS[0]: 1})
    known = changes.number
    it.look({KEYS[0]: 1})
    assert changes.number == known
    it.look({KEYS[0]: 2})
    assert changes.number > known
    found = it.since(known)
    assert found is not None
    assert (found.changed, found.gone) == ({KEYS[0]}, ())


@pytest.mark.parametrize("generation", [0, 2, 10**6])
def test_what_was_never_shown_has_no_difference(generation: int) -> None:
    it = Journal(Generation())
    it.look({KEYS[0]: 1})
    assert it.since(generation) is None
    found = it.since(1)
    assert found is not None
    assert not found.changed


def test_what_is_gone_is_not_remembered_for_ever() -> None:
    changes, shown = Generation(), dict.fromkeys(KEYS, 1)
    it = Journal(changes, max_gone=2)
    it.look(shown)
    first = changes.number
    for key in KEYS:
        shown = {other: value for other, value in shown.items() if other != key}
        changes.bump()
        it.look(shown)
    assert it.since(first) is None
    found = it.since(changes.number - 2)
    assert found is not None
    assert found.gone == tuple(KEYS[-2:])
    assert journal.MAX_GONE > 1000


MakePod = Callable[..., Awaitable[ManagedPod]]
COUNTERS = {"num_in_flight": 0, "last_used": None, "num_tokens": None}
NAMES = [f"a{number}" for number in range(5)]


def documents(pod: ManagedPod) -> tuple[int, Shown, Shown]:
    """The generation, what the admin API shows without its counters, and what gateways are shown."""
    manager = pod.manager
    manager.shown.states_since(None)
    manager.shown.routes_since(None)
    states = {(one.name, one.revision): one.model_copy(update=COUNTERS) for one in manager.shown.observed()}
    return manager.changes.number, states, {(one.name, one.revision): one for one in manager.shown.routes()}  # type: ignore[return-value]


async def test_differences_of_a_pod_come_to_its_documents(make_pod: MakePod) -> None:
    """While adapters are written, moved, removed, loaded, evicted and fail, and requests come and go."""
    pod, draw = await make_pod(), random.Random(7)
    entries = [await pod.entry(name) for name in NAMES]
    known, kinds = documents(pod), set[Any]()
    for number in range(120):
        told = draw.sample(entries, draw.randint(0, 2))
        flags = {
            "residency": draw.choice(list(Residency)),
            "pinned": draw.random() < 0.2,
            "stable": draw.random() < 0.8,
        }
        gone = [RevisionRef(name=e.name, revision=e.digest[7:19]) for e in draw.sample(entries, draw.randint(0, 1))]
        pod.engine.device.broken = Reason.LOAD_FAILED if number % 10 == 3 else None
        pod.write(*(one.model_copy(update=flags) for one in told), removed=gone)
        if draw.random() < 0.7:
            await asyncio.sleep(draw.choice([0.0, 0.0, 0.005]))
        manager = pod.manager
        states, routes = manager.shown.states_since(known[0]), manager.shown.routes_since(known[0])
        now = documents(pod)
        for difference, then, whole in ((states, known[1], now[1]), (routes, known[2], now[2])):
            assert difference is not None
            gone_keys, changed = (
                [(k.name, k.revision) for k in difference.gone],
                {(k.name, k.revision) for k in difference.changed},
            )
            merged = {key: one for key, one in then.items() if key not in gone_keys} | {
                key: whole[key] for key in changed
            }
            assert merged == whole
        kinds |= {one.state for one in pod.manager.shown.observed()}
        if draw.random() < 0.6:
            known = now
    assert len(kinds) >= 4, "more than one kind of life was seen"
