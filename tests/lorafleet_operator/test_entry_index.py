"""What is looked up in a pod's document is the same however it was come to, and what has changed in it is missed nowhere."""

import random

import pytest
from support import operator_views as v

from lorafleet_contract.admin import AdapterState, ObservedAdapter, Owner, Residency
from lorafleet_operator.decide.entry_index import MAX_STEPS, EntryIndex, index_of


def drawn(draw: random.Random) -> ObservedAdapter:
    return v.entry(
        draw.choice("xyz"),
        draw.choice("abcdefghij"),
        owner=draw.choice([Owner.OPERATOR] * 5 + [Owner.LOCAL]),
        residency=draw.choice(list(Residency)),
        state=draw.choice([AdapterState.READY, AdapterState.FAILED]),
        pinned=draw.random() < 0.3,
    )


def changed(entries: list[ObservedAdapter], draw: random.Random) -> list[ObservedAdapter]:
    """A later document: entries in place, at the end, gone, or in another order."""
    known = {(entry.name, entry.revision): entry for entry in entries}
    for _ in range(draw.choice([0, 1, 1, 2])):
        one = drawn(draw)
        known[one.name, one.revision] = one
    if known and draw.random() < 0.3:
        known.pop(draw.choice(list(known)))
    after = list(known.values())
    if draw.random() < 0.1:
        draw.shuffle(after)
    return after


def looked_up(index: EntryIndex) -> tuple[object, ...]:
    own = {name: sorted(map(id, those)) for name, those in index.own.items()}
    return own, dict(index.revisions), index.residents, index.local_names, sorted(map(id, index.pinned))


@pytest.mark.parametrize("seed", range(4))
def test_index_of_what_a_pod_says_now_is_that_of_its_document(seed: int) -> None:
    draw = random.Random(seed)
    entries = [drawn(draw) for _ in range(20)]
    entries = list({(entry.name, entry.revision): entry for entry in entries}.values())
    index = index_of(entries)
    before = [index]
    for _ in range(100):
        entries = changed(entries, draw)
        index = index.now(entries)
        assert index.entries is entries
        assert looked_up(index) == looked_up(index_of(entries))
        for other in (*draw.sample(before, min(3, len(before))), before[-1]):
            keys = index.revisions.keys() | other.revisions.keys()
            different = {key for key in keys if index.revisions.get(key) is not other.revisions.get(key)}
            assert different <= index.since(other)
            assert different <= other.since(index)  # of another line, or of a later one
        before.append(index)


def test_what_changed_since_one_of_the_last_documents_is_known_without_comparing() -> None:
    one, other = v.entry("x", "a"), v.entry("y", "b", stable=False)
    entries = [one, other, *(v.entry("z", f"more-{number}") for number in range(10))]
    first = index = index_of(entries)
    assert index.since(first) == set()
    for number in range(MAX_STEPS - 1):
        entries = [one.model_copy(), *entries[1:]] if number % 2 else entries[:]
        index = index.now(entries)
        # back to what it was, as the last document says it: it is among what may have changed all the same
        assert index.since(first) == ({("a", one.revision)} if number else set())
    back = index.now([one, *entries[1:]])
    assert back.since(index) == {("a", one.revision)}
    for number in range(2 * MAX_STEPS):
        back = back.now([one.model_copy() if number % 2 else one, *entries[1:]])
    assert back.since(index) == {("a", one.revision)}
    steps, step = 0, back.step
    while step.before is not None:
        steps, step = steps + 1, step.before
    assert steps <= MAX_STEPS
