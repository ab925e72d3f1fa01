"""Catalogue writes: fences, owners, the stable alias; and that it holds under any sequence of writes."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_contract.admin import Owner, Residency, RevisionRef
from lorafleet_contract.sources import AdapterFacts
from lorafleet_inference.adapters.catalogue import Artifact, Catalogue, Contradiction, Entry, NotOwned, StaleWrite
from lorafleet_inference.adapters.sources.base import Place
from lorafleet_inference.adapters.sources.folder import FolderSource

SOURCE = FolderSource("models", Path("/nowhere"))


def revision(content: int) -> str:
    return f"{content:012x}"


def at(name: str, content: int, **flags: Any) -> Entry:
    digest = f"sha256:{revision(content)}{'0' * 52}"
    facts = AdapterFacts(rank=1, size_bytes=1, target_modules=[])
    return Entry(name, Artifact(digest, (), facts, SOURCE, Place(name)), **{"owner": Owner.OPERATOR, **flags})


def write(catalogue: Catalogue, number: int, *entries: Entry, fence: int = 1, removed: Any = ()) -> Any:
    refs = [RevisionRef(name=name, revision=revision(content)) for name, content in removed]
    return catalogue.write(fence=fence, generation=number, entries=entries, removed=refs)


def test_absence_changes_nothing_and_only_removed_removes() -> None:
    catalogue = Catalogue()
    assert len(write(catalogue, 1, at("a", 1), at("b", 2)).put) == 2
    assert not write(catalogue, 2, at("a", 1)).removed
    assert {one.name for one in catalogue} == {"a", "b"}
    changes = write(catalogue, 3, removed=[("b", 2), ("c", 3)])
    assert [one.name for one in changes.removed] == ["b"]
    assert {one.name for one in catalogue} == {"a"}


@pytest.mark.parametrize(("fence", "number"), [(1, 9), (2, 4), (0, 100)])
def test_older_writes_are_refused_and_change_nothing(fence: int, number: int) -> None:
    catalogue = Catalogue()
    write(catalogue, 5, at("a", 1), fence=2)
    with pytest.raises(StaleWrite):
        write(catalogue, number, at("b", 2), fence=fence)
    assert {one.name for one in catalogue} == {"a"}
    assert (catalogue.fence, catalogue.generation) == (2, 5)


def test_a_repetition_changes_nothing() -> None:
    catalogue = Catalogue()
    write(catalogue, 5, at("a", 1))
    changes = write(catalogue, 5, at("a", 1), removed=[("a", 1)])
    assert (changes.put, changes.removed, [one.name for one in changes.repeated]) == ((), (), ["a"])


def test_the_first_write_counts_whatever_its_numbers() -> None:
    catalogue = Catalogue()
    assert catalogue.was_written is False
    assert write(catalogue, 0, at("a", 1), fence=0).put
    assert catalogue.was_written


def test_the_name_moves_to_the_new_stable_revision() -> None:
    catalogue = Catalogue()
    write(catalogue, 1, at("a", 1))
    write(catalogue, 2, at("a", 2, stable=False))
    found = catalogue.find("a", None)
    assert found is not None
    assert found.key.revision == revision(1)
    changes = write(catalogue, 3, at("a", 2))
    assert {(one.key.revision, one.stable) for one in changes.put} == {(revision(1), False), (revision(2), True)}
    found = catalogue.find("a", None)
    assert found is not None
    assert found.key.revision == revision(2)
    old = catalogue.find("a", revision(1))
    assert old is not None
    assert not old.stable


def test_two_stable_revisions_in_one_write_are_a_contradiction() -> None:
    with pytest.raises(Contradiction, match="a"):
        write(Catalogue(), 1, at("a", 1), at("a", 2))


def test_owners_leave_each_others_names_alone() -> None:
    catalogue = Catalogue()
    catalogue.put(at("mine", 1, owner=Owner.LOCAL))
    changes = write(catalogue, 1, at("mine", 2), at("theirs", 3), removed=[("mine", 1)])
    assert [one.name for one in changes.passed_over] == ["mine"]
    assert not changes.removed
    assert {(one.name, one.owner) for one in catalogue} == {("mine", Owner.LOCAL), ("theirs", Owner.OPERATOR)}
    for refused in (
        lambda: catalogue.put(at("theirs", 4, owner=Owner.LOCAL)),
        lambda: catalogue.remove("theirs", Owner.LOCAL),
    ):
        with pytest.raises(NotOwned):
            refused()
    assert [one.name for one in catalogue.remove("mine", Owner.LOCAL).removed] == ["mine"]


def test_written_and_removed_at_once_stays() -> None:
    catalogue = Catalogue()
    write(catalogue, 1, at("a", 1))
    assert not write(catalogue, 2, at("a", 1, pinned=True), removed=[("a", 1)]).removed
    assert catalogue.find("a", None) == at("a", 1, pinned=True)


entries = st.builds(
    at,
    name=st.sampled_from("abc"),
    content=st.integers(1, 3),
    stable=st.booleans(),
    residency=st.sampled_from(list(Residency)),
    owner=st.sampled_from(list(Owner)),
)
writes = st.tuples(
    st.integers(0, 2),
    st.integers(0, 3),
    st.lists(entries, max_size=4),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3)), max_size=3),
)


@given(st.lists(writes, max_size=8))
def test_at_most_one_stable_revision_and_one_owner_whatever_is_written(steps: Any) -> None:
    catalogue = Catalogue()
    tracked: dict[Any, Entry] = {}
    for fence, number, written, removed in steps:
        before = (catalogue.fence, catalogue.generation)
        known = dict(tracked)
        changes = []
        with suppress(StaleWrite, Contradiction, NotOwned):
            changes.extend(catalogue.put(one) for one in written if one.owner is Owner.LOCAL)
        with suppress(StaleWrite, Contradiction):
            operator = [one for one in written if one.owner is Owner.OPERATOR]
            changes.append(write(catalogue, number, *operator, fence=fence, removed=removed))
        for one in changes:
            assert all(known.get(each.key) == each for each in one.repeated)
            assert all(known.get(each.key) != each for each in one.put), "what is as it was has not changed"
            tracked |= {each.key: each for each in one.put}
            known |= tracked
            for each in one.removed:
                del tracked[each.key]
        assert (catalogue.fence, catalogue.generation) >= before
        assert {each.key: each for each in catalogue} == tracked, "changes say all that changed"
        for name in "abc":
            of_name = catalogue.revisions(name)
            assert sum(one.stable for one in of_name) <= 1
            assert len({one.owner for one in of_name}) <= 1


def test_a_contradiction_names_the_adapter_and_changes_nothing() -> None:
    """Also when others of the write are in order, and when the two are not side by side."""
    catalogue = Catalogue()
    write(catalogue, 1, at("first", 1))
    with pytest.raises(Contradiction, match=r"^two stable revisions of second$"):
        write(catalogue, 2, at("first", 2), at("second", 1), at("third", 1), at("second", 2))
    assert (catalogue.fence, catalogue.generation) == (1, 1)
    assert [one.key.revision for one in catalogue] == [revision(1)]
    write(catalogue, 2, at("second", 1), at("second", 2, stable=False))
    assert catalogue.find("second", None).key.revision == revision(1)  # type: ignore[union-attr]


def test_what_is_written_as_it_was_is_repeated_and_has_not_changed() -> None:
    catalogue = Catalogue()
    write(catalogue, 1, at("a", 1), at("a", 2, stable=False), at("b", 1))
    changes = write(catalogue, 2, at("a", 1), at("b", 1, pinned=True), at("c", 1))
    assert changes.repeated == (at("a", 1),)
    assert changes.put == (at("b", 1, pinned=True), at("c", 1)), "a revision that is not stable is not made so again"
    assert (changes.removed, changes.passed_over) == ((), ())
    moved = write(catalogue, 3, at("a", 3), at("b", 1, pinned=True))
    assert moved.put == (at("a", 1, stable=False), at("a", 3))
    assert moved.repeated == (at("b", 1, pinned=True),)


def test_a_revision_leaves_alone_and_a_name_with_its_last_one() -> None:
    catalogue = Catalogue()
    write(catalogue, 1, at("a", 1), at("a", 2, stable=False))
    key = at("a", 1).key
    assert catalogue.remove_one(key).removed == (at("a", 1),)
    assert catalogue.remove_one(key).removed == ()
    assert catalogue.revisions("a") == [at("a", 2, stable=False)]
    assert catalogue.owner("a") is Owner.OPERATOR
    assert catalogue.remove_one(at("a", 2).key).removed == (at("a", 2, stable=False),)
    assert catalogue.owner("a") is None
    assert catalogue.put(at("a", 1, owner=Owner.LOCAL)).put, "nobody has the name any more"


def test_what_is_not_known_is_not_found() -> None:
    catalogue = Catalogue()
    write(catalogue, 1, at("a", 1, stable=False))
    assert catalogue.find("a", None) is None, "none is stable"
    assert catalogue.find("a", revision(2)) is None
    assert catalogue.find("b", None) is None
    assert catalogue.find("a", revision(1)) == at("a", 1, stable=False)


def test_refusals_name_what_stands_against_the_write() -> None:
    catalogue = Catalogue()
    write(catalogue, 5, at("theirs", 1), fence=2)
    with pytest.raises(StaleWrite, match="fence 1, generation 9 is older than fence 2, generation 5"):
        write(catalogue, 9, fence=1)
    with pytest.raises(NotOwned, match="theirs belongs to the owner operator"):
        catalogue.put(at("theirs", 2, owner=Owner.LOCAL))
    with pytest.raises(NotOwned, match="theirs belongs to the owner operator"):
        catalogue.remove("theirs", Owner.LOCAL)
