"""Which file of tests goes to which process, and when: a process mostly waits while as many as there are cores compute.

`tests/file_seconds.txt` says what each file took: its path from the root, seconds of a core with the programs that it
started, and all its seconds. A run with `-p support.cpu_seconds` and LORAFLEET_TEST_SECONDS writes it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "tests/file_seconds.txt"
CLUSTER = "cluster"
"""What all files are together that use the cluster, as they share it."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """What files took: of a core, with the programs that they started, and in all."""

    core: float
    all: float

    @property
    def mostly_waits(self) -> bool:
        return self.core < self.all / 2

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.core + other.core, self.all + other.all)


UNKNOWN = Seconds(core=30, all=30)
"""A file that nobody has measured begins before nearly all others: if it is long, it is not what all wait for in the end."""
FIRST = Seconds(core=0, all=1e6)
"""The cluster: from its start to the end of what is tested in it nothing takes as long."""


def read_table(text: str) -> dict[str, Seconds]:
    """Return what is known of files by their paths from the root."""
    fields = [line.split() for line in text.splitlines()]
    return {path: Seconds(float(core), float(everything)) for path, core, everything in fields}


def write_table(table: Mapping[str, Seconds], path: Path = TABLE) -> None:
    """Write down what is known of the files that are there."""
    known = sorted((file, one) for file, one in table.items() if (ROOT / file).exists())
    path.write_text("".join(f"{file} {one.core:.1f} {one.all:.1f}\n" for file, one in known))


def unit_of(path: str) -> str:
    """The tests that stay together with those of a file, by its path from the root."""
    return CLUSTER if uses_cluster(path) else path


@cache
def uses_cluster(path: str) -> bool:
    """Whether a file, by its path from the root, has tests of the cluster."""
    return "pytest.mark.cluster" in (ROOT / path).read_text()


def next_unit(left: Iterable[str], others: Iterable[str], table: Mapping[str, Seconds]) -> str:
    """Which of the units that are left a process begins while others are at theirs; `left` is never empty.

    The longest that mostly waits while no other waits, else the longest that computes; what is unknown computes. So no
    core is idle while the cluster starts, and what is long is not what is left in the end.
    """
    units = sorted(left, key=lambda unit: -table.get(unit, UNKNOWN).all)
    someone_waits = any(table.get(unit, UNKNOWN).mostly_waits for unit in others)
    return min(units, key=lambda unit: table.get(unit, UNKNOWN).mostly_waits == someone_waits)


class ByFile(LoadFileScheduling):
    """Tests of a file go to one process, as they share what it has started; so do those of all files that use the cluster."""

    def __init__(self, config: pytest.Config, log: Producer, seconds: Mapping[str, Seconds]) -> None:
        super().__init__(config, log)
        self._seconds = {**seconds, CLUSTER: FIRST}
        self._last: dict[WorkerController, str] = {}

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid.partition("::")[0])

    def _assign_work_unit(self, node: WorkerController) -> None:
        others = [self._last[other] for other in self.nodes if other != node and other in self._last]
        unit = next_unit(self.workqueue, others, self._seconds)
        self.workqueue.move_to_end(unit, last=False)
        self._last[node] = unit
        super()._assign_work_unit(node)
