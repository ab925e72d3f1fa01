"""A cache equals the collection, whatever order lists, events and look-ups come in."""

from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lorafleet_common.kube.cache import Cache, Unreadable


@dataclass(frozen=True)
class View:
    uid: str
    version: int


def body(uid: str, version: int, namespace: str = "team") -> dict[str, Any]:
    return {"metadata": {"uid": uid, "name": uid, "resourceVersion": str(version), "namespace": namespace}}


def view(body: dict[str, Any]) -> View:
    return View(body["metadata"]["uid"], int(body["metadata"]["resourceVersion"]))


class Mirror:
    """What somebody who listens to a cache believes."""

    def __init__(self) -> None:
        self.views: dict[str, View] = {}
        self.cache = Cache(view, self.changed)

    def changed(self, old: View | None, new: View | None) -> None:
        if old is not None:
            assert self.views.pop(old.uid) == old
        if new is not None:
            assert new.uid not in self.views
            self.views[new.uid] = new


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["put", "delete", "watch", "list", "look"])), max_size=40
    )
)
def test_it_ends_as_the_collection_is(steps: list[tuple[str, str]]) -> None:
    """History is written on one side; watch, lists and look-ups read it at any point on the other."""
    truth: dict[str, int] = {}
    log: list[tuple[str, dict[str, Any]]] = []
    position, mirror = 0, Mirror()
    for version, (uid, step) in enumerate([*steps, ("a", "watch")], start=1):
        if step == "put":
            truth[uid] = version
            log.append(("put", body(uid, version)))
        elif step == "delete" and uid in truth:
            del truth[uid]
            log.append(("remove", body(uid, version)))
        elif step == "watch":
            for kind, what in log[position:]:
                (mirror.cache.put if kind == "put" else mirror.cache.remove)(what, "")
            position = len(log)
            assert mirror.views == {uid: View(uid, number) for uid, number in truth.items()}
        elif step == "list":
            mirror.cache.replace([body(*item) for item in truth.items()], version, "")
            position = len(log)
            assert mirror.views == {uid: View(uid, number) for uid, number in truth.items()}
        elif step == "look" and uid in truth:
            mirror.cache.put_found(body(uid, truth[uid]), "")
            assert mirror.views[uid].version == truth[uid]


def test_what_was_looked_up_before_and_arrives_after_its_deletion_stays_away() -> None:
    mirror = Mirror()
    mirror.cache.put(body("a", 5), "")
    mirror.cache.remove(body("a", 7), "")
    mirror.cache.put_found(body("a", 5), "")
    assert not mirror.views


def test_a_list_of_one_namespace_says_nothing_of_another() -> None:
    mirror = Mirror()
    mirror.cache.put(body("a", 5, "one"), "one")
    mirror.cache.put(body("b", 6, "two"), "two")
    mirror.cache.replace([], 9, "two")
    assert set(mirror.views) == {"a"}


def test_what_is_newer_than_a_list_is_not_judged_by_it() -> None:
    mirror = Mirror()
    mirror.cache.put_found(body("a", 12), "")
    mirror.cache.replace([], 10, "")
    assert set(mirror.views) == {"a"}


def test_of_an_object_that_cannot_be_read_any_more_the_last_view_stays() -> None:
    told: list[tuple[View | None, View | None]] = []

    def view_of(body: dict[str, Any]) -> View:
        if body.get("spec") == "of later":
            raise Unreadable(body["metadata"]["uid"])
        return view(body)

    cache = Cache(view_of, lambda old, new: told.append((old, new)))
    cache.put(body("a", 1), "")
    for uid, version in (("a", 2), ("b", 3)):
        cache.put({**body(uid, version), "spec": "of later"}, "")
    assert told == [(None, View("a", 1))]
    assert [(one.where, one.view) for one in cache.unread] == [("team/a", View("a", 1)), ("team/b", None)]
    cache.put(body("a", 1), "")  # older than what cannot be read
    assert len(cache.unread) == 2
    cache.put(body("a", 4), "")
    assert [one.where for one in cache.unread] == ["team/b"]
    assert told[1:] == [(View("a", 1), View("a", 4))]
    leaving = {**body("a", 5), "spec": "of later"}
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    cache.put(leaving, "")
    assert [(one.where, one.view) for one in cache.unread] == [("team/a", None), ("team/b", None)]
    cache.remove(body("a", 6), "")
    cache.put(body("b", 7), "")
    assert cache.unread == []
    assert told[2:] == [(View("a", 4), None), (None, View("b", 7))]
