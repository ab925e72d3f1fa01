"""The node cache: whole or not there, within its budget, never taking away what somebody holds."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lorafleet_inference.adapters.cache import NodeCache, NoRoom

Open = Callable[[int], NodeCache]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens the cache in `tmp_path` with a budget."""
    with ExitStack() as stack:

        def open_one(max_bytes: int) -> NodeCache:
            cache = NodeCache.open(tmp_path, max_bytes)
            stack.callback(cache.close)
            return cache

        yield open_one


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def add(cache: NodeCache, number: int, num_bytes: int = 10) -> None:
    download = cache.begin(f"content {number}", num_bytes)
    (download.folder / "file").write_bytes(bytes([number]) * num_bytes)
    cache.commit(download, digest(number))


def has(cache: NodeCache, number: int) -> bool:
    folder = cache.hold(digest(number))
    if folder is None:
        return False
    assert set((folder / "file").read_bytes()) == {number}
    cache.let_go(digest(number))
    return True


def test_the_least_recently_used_one_goes(opened: Open) -> None:
    cache = opened(30)
    for number in (1, 2, 3):
        add(cache, number)
    assert has(cache, 1)
    add(cache, 4)
    assert [has(cache, number) for number in (1, 2, 3, 4)] == [True, False, True, True]
    assert cache.used_bytes == 30


def test_what_is_held_stays_and_nothing_is_evicted_in_vain(opened: Open) -> None:
    cache = opened(30)
    for number in (1, 2, 3):
        add(cache, number)
    assert cache.hold(digest(1)) is not None
    with pytest.raises(NoRoom):
        cache.begin("large", 25)
    assert [has(cache, number) for number in (1, 2, 3)] == [True, True, True]
    add(cache, 4, 20)
    assert [has(cache, number) for number in (1, 2, 3, 4)] == [True, False, False, True]
    cache.let_go(digest(1))
    add(cache, 5, 30)
    assert has(cache, 5)


def test_a_restart_finds_what_was_committed_and_its_order(opened: Open) -> None:
    cache = opened(100)
    for number in (1, 2, 3):
        add(cache, number)
        os.utime(cache.root / digest(number)[7:], (time.time(), 1_000_000 + number))
    assert has(cache, 1)
    cache.close()
    again = opened(100)
    assert again.root == cache.root
    assert again.used_bytes == 30
    again.begin("large", 90)
    assert [has(again, number) for number in (1, 2, 3)] == [True, False, False]


def test_a_smaller_budget_at_a_restart_evicts(opened: Open) -> None:
    cache = opened(100)
    for number in (1, 2, 3):
        add(cache, number)
    cache.close()
    assert opened(15).used_bytes == 10


def test_half_written_leftovers_are_never_taken_for_whole(opened: Open) -> None:
    cache = opened(100)
    download = cache.begin("content 1", 10)
    (download.folder / "file").write_bytes(b"half")
    cache.close()
    again = opened(100)
    assert not has(again, 1)
    resumed = again.begin("content 1", 10)
    assert (resumed.folder / "file").read_bytes() == b"half", "the next attempt goes on from it"


def test_old_leftovers_are_removed(opened: Open) -> None:
    cache = opened(100)
    download = cache.begin("content 1", 10)
    os.utime(download.folder, (0, 0))
    trash = cache.root / ".trash-1-x"
    trash.mkdir()
    cache.close()
    opened(100)
    assert not download.folder.exists()
    assert not trash.exists()


def test_kept_downloads_count_and_go_before_adapters(opened: Open) -> None:
    cache = opened(30)
    add(cache, 1)
    for name, keep in (("kept", True), ("dropped", False)):
        download = cache.begin(name, 10)
        (download.folder / "file").write_bytes(b"12345")
        cache.abandon(download, keep=keep)
    assert cache.used_bytes == 15
    add(cache, 2, 20)
    assert has(cache, 1)
    assert cache.used_bytes == 30


NUM_FILES = 1000
"""Of a folder that takes a while to remove."""


def fill(folder: Path) -> None:
    for number in range(NUM_FILES):
        (folder / f"{number}").touch()


@pytest.mark.parametrize("how", ["evicted", "abandoned"])
def test_nobody_waits_while_a_folder_is_removed(opened: Open, how: str) -> None:
    cache = opened(30)
    if how == "evicted":
        add(cache, 1)
        fill(cache.root / digest(1)[7:])
        removing = threading.Thread(target=cache.begin, args=("large", 30))
    else:
        download = cache.begin("content 1", 10)
        fill(download.folder)
        removing = threading.Thread(target=partial(cache.abandon, download, keep=False))

    def is_removed() -> bool:
        return any(cache.root.glob(".trash-*"))

    removing.start()
    answered = False
    while removing.is_alive():
        began = is_removed()
        assert cache.used_bytes <= 30
        answered = answered or (began and is_removed())
    removing.join()
    assert answered, "whoever asked meanwhile was answered before the folder was gone"
    assert not is_removed()


def test_a_second_process_takes_a_folder_of_its_own(opened: Open) -> None:
    first, second = opened(30), opened(30)
    assert first.root != second.root
    add(first, 1)
    assert not has(second, 1)


def test_the_same_content_twice_is_one_entry(opened: Open) -> None:
    cache = opened(30)
    first, second = cache.begin("one way", 10), cache.begin("another way", 10)
    for download in (first, second):
        (download.folder / "file").write_bytes(bytes([1]) * 10)
        cache.commit(download, digest(1))
    assert cache.used_bytes == 10
    assert has(cache, 1)


def test_threads_do_not_tread_on_each_other(opened: Open) -> None:
    cache = opened(200)
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for number in range(first, first + 25):
                add(cache, number)
                has(cache, number)
        except BaseException as error:  # noqa: BLE001  a thread's own
            failures.append(error)

    threads = [threading.Thread(target=work, args=(1 + 25 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert cache.used_bytes <= 200


def test_a_folder_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        NodeCache.open(tmp_path / "file", 10)
    assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)


class Machine(RuleBasedStateMachine):
    """Any order of calls: the budget holds, and what is held is there."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.cache = NodeCache.open(self.folder / str(time.monotonic_ns()), 50)
        self.held: list[int] = []

    @rule(number=st.integers(1, 9), num_bytes=st.integers(1, 30))
    def download(self, number: int, num_bytes: int) -> None:
        before = {other for other in range(1, 10) if has(self.cache, other)}
        try:
            add(self.cache, number, num_bytes)
        except NoRoom:
            assert {other for other in range(1, 10) if has(self.cache, other)} == before
        else:
            assert has(self.cache, number)

    @rule(number=st.integers(1, 9))
    def hold(self, number: int) -> None:
        if self.cache.hold(digest(number)) is not None:
            self.held.append(number)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.held))
        self.held.remove(number)
        self.cache.let_go(digest(number))

    @invariant()
    def within_the_budget(self) -> None:
        assert self.cache.used_bytes <= 50
        assert all(has(self.cache, number) for number in self.held)

    def teardown(self) -> None:
        self.cache.close()


def test_any_order_of_calls(tmp_path: Path) -> None:
    machine = type("Placed", (Machine,), {"folder": tmp_path})
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(machine, settings=settings(max_examples=20, stateful_step_count=20, deadline=None))
