"""What the processes of a pod take, sampled: memory, files, threads, children; and how late its /health is."""

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
from soak.hostile.client import ask
from soak.hostile.world import Ledger
from support.pod import ServedPod

PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20
API, ENGINE, TEMPLATES = "api", "engine", "templates"
HEALTH_SECONDS, STEPS_SECONDS = 0.5, 0.5
STEPS = "lorafleet_engine_steps_total"


@dataclass(frozen=True)
class Sample:
    """At one moment, by role."""

    seconds: float
    memory_mib: dict[str, float]
    """Resident; that of template workers together."""
    files: dict[str, int]
    threads: dict[str, int]
    num_children: int
    """Of the API process, and theirs."""
    disk_mib: float
    """The pod's cache folder."""


def descendants(pid: int) -> list[int]:
    """Ids of the children of a process and of theirs."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                for child in map(int, (thread / "children").read_text().split()):
                    found += [child, *descendants(child)]
    return found


def role_of(pid: int) -> str | None:
    """What a child does; None if it is gone, or only begins."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    if b"engine.process" in command:
        return ENGINE
    return TEMPLATES if b"text." in command else None


class Watch:
    """Samples one pod."""

    def __init__(self, pod: ServedPod, cache: Path, ledger: Ledger) -> None:
        self._url = pod.url
        self._cache = cache
        self._ledger = ledger
        self._pid = pod.process.pid
        self._began = time.monotonic()
        self.samples: list[Sample] = []
        self.health: list[tuple[float, float]] = []
        """When, and seconds until the answer."""
        self.steps: list[tuple[float, float]] = []
        """When, and how many the engine had done."""

    @property
    def now_seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def engine_pids(self) -> list[int]:
        """Ids of the engine processes; there is one."""
        return [pid for pid in descendants(self._pid) if role_of(pid) == ENGINE]

    async def sample(self, interval_seconds: float) -> None:
        """Until cancelled."""
        while True:
            self.samples.append(self.now())
            await asyncio.sleep(interval_seconds)

    async def ask_health(self) -> None:
        """Until cancelled; whoever judges the pod by /health has to be content at any time."""
        async with aiohttp.ClientSession() as session:
            while True:
                answer = await ask(session, f"{self._url}/health", None, method="GET", seconds=60)
                self.health.append((self.now_seconds, answer.seconds))
                if answer.status != 200:
                    self._ledger.find("health", f"{answer.outcome} {answer.text[:300]}")
                await asyncio.sleep(HEALTH_SECONDS)

    async def count_steps(self) -> None:
        """Until cancelled."""
        async with aiohttp.ClientSession() as session:
            while True:
                answer = await ask(session, f"{self._url}/metrics", None, method="GET", seconds=60)
                lines = (line for line in answer.text.splitlines() if line.startswith(f"{STEPS}{{"))
                self.steps += [(self.now_seconds, float(line.rsplit(" ", 1)[1])) for line in lines]
                await asyncio.sleep(STEPS_SECONDS)

    def steps_between(self, begin: float, end: float) -> float:
        """Return how many steps the engine did between two moments, counted evenly between two looks."""
        moments = [moment for moment, _ in self.steps]
        numbers = [number for _, number in self.steps]
        return float(np.interp(end, moments, numbers) - np.interp(begin, moments, numbers)) if moments else 0.0

    def now(self) -> Sample:
        """Take one sample."""
        children = descendants(self._pid)
        memory: dict[str, float] = {}
        files: dict[str, int] = {}
        threads: dict[str, int] = {}
        for pid, role in [(self._pid, API), *((pid, role_of(pid)) for pid in children)]:
            if role is None:
                continue
            with contextlib.suppress(OSError):
                resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / MIB
                memory[role] = memory.get(role, 0.0) + resident
                files[role] = files.get(role, 0) + _num_entries(f"/proc/{pid}/fd")
                threads[role] = threads.get(role, 0) + _num_entries(f"/proc/{pid}/task")
        return Sample(self.now_seconds, memory, files, threads, len(children), _disk_bytes(self._cache) / MIB)


def _num_entries(folder: str) -> int:
    return sum(1 for _ in Path(folder).iterdir())


def _disk_bytes(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(place) / name).lstat().st_size
    return total


def growth(values: Sequence[tuple[float, float]]) -> float:
    """Return by how much a straight line through (seconds, value) rises from its first to its last second.

    The slope is the median of those of all pairs (Theil-Sen), which single peaks do not tilt.
    """
    if len(values) < 3:
        return 0.0
    step = max(1, len(values) // 400)
    kept = values[::step]
    slopes = sorted(
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for place, earlier in enumerate(kept)
        for later in kept[place + 1 :]
    )
    return slopes[len(slopes) // 2] * (values[-1][0] - values[0][0])
