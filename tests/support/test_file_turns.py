"""Files of tests are given to processes so that all of the cluster's are together, cores compute, and nothing long is last."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from support.file_turns import CLUSTER, FIRST, ROOT, ByFile, Seconds, next_unit, read_table, unit_of, write_table
from support.file_turns import TABLE as MEASURED
from xdist.remote import Producer

COMPUTES, MORE, WAITS, WAITS_MORE = Seconds(10, 11), Seconds(20, 21), Seconds(1, 12), Seconds(2, 30)
KNOWN = {"computes": COMPUTES, "more": MORE, "waits": WAITS, "waits-more": WAITS_MORE, CLUSTER: FIRST}
LONGEST, LONG = "tests/numerals/test_truth.py", "tests/charts/test_values.py"
TABLE = {LONG: COMPUTES, LONGEST: MORE}
OF_THE_CLUSTER = ("tests/cluster/test_demo.py", "tests/charts/test_on_cluster.py")


@pytest.mark.parametrize(
    ("left", "others", "begun"),
    [
        (["computes", "waits-more", CLUSTER, "more", "unknown"], [], CLUSTER),
        (["computes", "waits", "waits-more", "more"], ["computes"], "waits-more"),
        (["computes", "waits", "waits-more", "more"], [CLUSTER], "more"),
        (["computes", "more"], [], "more"),
        (["waits", "waits-more"], [CLUSTER, "computes"], "waits-more"),
        (["computes", "unknown", "more"], ["waits"], "unknown"),
    ],
    ids=[
        "the cluster first",
        "one waits",
        "others compute",
        "none waits",
        "none computes",
        "the unknown before the known",
    ],
)
def test_one_waits_and_the_others_compute_the_longest_first(left: list[str], others: list[str], begun: str) -> None:
    assert next_unit(left, others, KNOWN) == begun
    assert next_unit(left[::-1], others, KNOWN) == begun


@dataclass(eq=False)
class Process:
    """A process of a run, that is told which tests to run."""

    name: str
    collection: list[str]
    begun: list[str]
    """Files in the order in which any process was given them."""
    run: list[str] = field(default_factory=list)
    shutting_down: bool = False

    @property
    def gateway(self) -> Any:
        return SimpleNamespace(id=self.name)

    def send_runtest_some(self, indices: Iterable[int]) -> None:
        given = [self.collection[index] for index in indices]
        self.run += given
        self.begun += _files(given)

    def shutdown(self) -> None:
        self.shutting_down = True


def scheduled(collection: list[str], number: int) -> tuple[ByFile, list[Process]]:
    """Processes that have found the tests, and have been given their first ones."""
    option = SimpleNamespace(loadscopereorder=False)
    config: Any = SimpleNamespace(option=option, getvalue=lambda _: ["popen"] * number)
    scheduler = ByFile(config, Producer("test"), TABLE)
    begun: list[str] = []
    processes: list[Any] = [Process(f"gw{index}", collection, begun) for index in range(number)]
    for process in processes:
        scheduler.add_node(process)
        scheduler.add_node_collection(process, collection)
    scheduler.schedule()
    return scheduler, processes


def _files(tests: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(test.partition("::")[0] for test in tests))


def some_tests(num_each: int = 4) -> list[str]:
    """As if each file had that many."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py"))
    return [f"{file}::test_{number}" for file in files for number in range(num_each)]


def finish(scheduler: ByFile, processes: list[Any]) -> None:
    """Run all tests, one of each process at a time, in turns."""
    done = dict.fromkeys(range(len(processes)), 0)
    while any(done[index] < len(process.run) for index, process in enumerate(processes)):
        for index, process in enumerate(processes):
            if done[index] < len(process.run):
                done[index] += 1
                test = process.run[done[index] - 1]
                scheduler.mark_test_complete(process, process.collection.index(test))


def test_each_test_runs_once_and_those_of_a_file_and_of_the_cluster_run_in_one_process() -> None:
    collection = some_tests()
    scheduler, processes = scheduled(collection, 3)
    finish(scheduler, processes)
    assert sorted(test for process in processes for test in process.run) == sorted(collection)
    files = [{unit_of(file) for file in _files(process.run)} for process in processes]
    assert sum(map(len, files)) == len(set.union(*files))
    assert unit_of(processes[0].begun[0]) == CLUSTER
    assert processes[0].begun[-2:] == [LONGEST, LONG]
    assert all(process.shutting_down for process in processes)


def test_what_a_process_that_died_had_before_it_is_run_by_the_others() -> None:
    collection = some_tests()
    scheduler, processes = scheduled(collection, 3)
    first: Any = processes[0]
    crashed = scheduler.remove_node(first)
    assert crashed == first.run[0]
    finish(scheduler, processes[1:])
    assert sorted(test for process in processes[1:] for test in process.run) == sorted(collection)


def test_files_that_use_the_cluster_are_known_by_their_mark() -> None:
    assert {unit_of(path) for path in OF_THE_CLUSTER} == {CLUSTER}
    assert unit_of("tests/charts/test_values.py") == "tests/charts/test_values.py"


def test_what_was_measured_is_read_as_it_was_written_but_for_files_that_are_gone(tmp_path: Any) -> None:
    kept = {"tests/conftest.py": Seconds(1.5, 2), "tests/cluster/test_demo.py": Seconds(0, 12.25)}
    write_table({**kept, "tests/gone.py": Seconds(1, 1)}, tmp_path / "table")
    assert read_table((tmp_path / "table").read_text()).keys() == kept.keys()
    assert read_table((tmp_path / "table").read_text())["tests/conftest.py"] == Seconds(1.5, 2)


def test_most_files_were_measured() -> None:
    """Otherwise it is time to measure again: see the budget in CONTRIBUTING.md."""
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(there & read_table(MEASURED.read_text()).keys()) > 0.8 * len(there)
