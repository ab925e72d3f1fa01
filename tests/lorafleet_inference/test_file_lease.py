"""Who does a piece of work that several want to do, told by a file."""

import threading
import time
from pathlib import Path

from support.waiting import wait_for

from lorafleet_inference.file_lease import FileLease


def lease(path: Path, holder: str, lost_seconds: float = 60.0) -> FileLease:
    return FileLease(path, holder, beat_seconds=0.02, lost_seconds=lost_seconds)


def test_one_takes_it_and_the_others_hear_who_and_how_far(tmp_path: Path) -> None:
    path = tmp_path / "x.lease"
    first, second = lease(path, "pod-a"), lease(path, "pod-b")
    assert first.take() is None
    assert second.take() == "pod-a"
    with first.held(lambda: {"done_bytes": 7}):
        wait_for("a word", lambda: second.told().get("done_bytes") == 7)
    assert second.take() is None, "it was given back"


def test_a_restarted_holder_does_not_wait_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "x.lease"
    assert lease(path, "pod-a").take() is None
    assert lease(path, "pod-a").take() is None


def test_one_who_says_nothing_more_loses_it_and_one_who_does_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "x.lease"
    assert lease(path, "gone").take() is None
    waiting = lease(path, "pod-b", lost_seconds=0.2)
    wait_for("its turn", lambda: waiting.take() is None, interval_seconds=0.02)
    with waiting.held(dict):
        late = lease(path, "pod-c", lost_seconds=0.5)
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            assert late.take() == "pod-b"
            time.sleep(0.02)


def test_of_many_who_find_it_lost_one_has_it(tmp_path: Path) -> None:
    path = tmp_path / "x.lease"
    assert lease(path, "gone").take() is None
    leases = [lease(path, f"pod-{number}", lost_seconds=0.1) for number in range(16)]
    for one in leases:
        assert one.take() == "gone"
    time.sleep(0.15)
    barrier, taken = threading.Barrier(len(leases)), []

    def take(one: FileLease) -> None:
        barrier.wait()
        if one.take() is None:
            taken.append(one)

    threads = [threading.Thread(target=take, args=(one,)) for one in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.lease.2"]


def test_a_file_that_is_being_written_is_of_somebody(tmp_path: Path) -> None:
    path = tmp_path / "x.lease"
    (tmp_path / "x.lease.1").touch()
    assert lease(path, "pod-a").take() == "another process"
    assert lease(path, "pod-a").told() == {}
