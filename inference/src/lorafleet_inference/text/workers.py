"""Runs jobs of somebody else's programs in processes of their own: a few at a time, and apart by how the programs have ended."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto
from typing import Generic, TypeVar

from lorafleet_inference.text.confined import HURRIED, WHOLE
from lorafleet_inference.text.frames import read_frame, write_frame

REST_SECONDS = 10.0
"""For a program that got out of hand, so that its requests do not hold up those of others."""
MAX_KNOWN = 1024
"""Programs of which it is remembered how they ended."""


class OutOfHand(Exception):
    """A program took too much time or memory, now or a moment ago, or had no turn; the message says what."""


class _Process:
    """One process; started when it is needed, and again after it ended."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, max_seconds: float, niceness: int
    ) -> None:
        self._command = command
        self._environment = environment
        self._max_seconds = max_seconds
        self._niceness = niceness
        self._running: subprocess.Popen[bytes] | None = None
        self.last = ""
        """The program that it ran last, and may have at hand."""
        self.has_ended = False
        """Whether it ran before, and does not now."""

    @property
    def pid(self) -> int | None:
        return None if self._running is None else self._running.pid

    def start(self) -> subprocess.Popen[bytes]:
        """Have it run."""
        if self._running is None:
            self._running, self.has_ended = self._started(), False
        return self._running

    def ask(self, job: bytes, *, is_hurried: bool) -> bytes | None:
        """Return what comes of a job; None if the process ended in it."""
        process = self.start()
        assert process.stdin is not None
        assert process.stdout is not None
        watch = threading.Timer(self._max_seconds, process.kill)
        watch.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                write_frame(process.stdin, (HURRIED if is_hurried else WHOLE) + job)
            return read_frame(process.stdout)
        finally:
            watch.cancel()

    def _started(self) -> subprocess.Popen[bytes]:
        # nothing else of the environment: it is not a stranger's to know
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME", "LANG") if name in os.environ}
        process = subprocess.Popen(  # noqa: S603  a module of ours
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**kept, **self._environment},
        )
        assert process.stdout is not None
        with contextlib.suppress(ProcessLookupError):  # at once: to begin takes a second of CPU
            os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + self._niceness)
        read_frame(process.stdout)  # READY; what it needs to begin is no program's time
        return process

    def close(self) -> int | None:
        """End the process; return its status, None if there was none."""
        process, self._running = self._running, None
        self.last, self.has_ended = "", process is not None
        if process is None:
            return None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        return process.wait()


class _Lane:
    """Some processes, and a thread for each that waits for it."""

    def __init__(self, processes: Sequence[_Process], *, is_hurried: bool) -> None:
        self.is_hurried = is_hurried
        """Whether jobs are given up soon, for another lane to take them."""
        self.threads = ThreadPoolExecutor(len(processes), thread_name_prefix="workers")
        self._starting = ThreadPoolExecutor(1, thread_name_prefix="workers-start")
        self._processes = processes
        self._idle = list(processes)
        self._became_idle = threading.Condition()

    @contextlib.contextmanager
    def process(self, program: str) -> Iterator[_Process]:
        """Wait for an idle process: the one that ran the program last, else the one that ran last."""
        with self._became_idle:
            while not self._idle:
                self._became_idle.wait()
            chosen = next((one for one in self._idle if one.last == program), self._idle[-1])
            self._idle.remove(chosen)
        try:
            yield chosen
        finally:
            if self.is_hurried and chosen.has_ended:
                self._starting.submit(self._start_again, chosen)  # nobody waits for it who can have another one
            else:
                self._is_idle(chosen)

    def _start_again(self, process: _Process) -> None:
        try:
            process.start()
        finally:
            self._is_idle(process)

    def _is_idle(self, process: _Process) -> None:
        with self._became_idle:
            self._idle.append(process)
            self._became_idle.notify()

    def close(self) -> None:
        """End the processes; no job is run any more."""
        self.threads.shutdown(cancel_futures=True)
        self._starting.shutdown()
        for one in self._processes:
            one.close()


class Ended(Enum):
    """How a program has ended so far."""

    NEVER = auto()
    """It is new here."""
    ALWAYS = auto()
    NOT_ALWAYS = auto()
    """It got out of hand at least once."""
    SLOWLY = auto()
    """It was given up once by a process that others waited for. It goes with the new ones."""


NICENESS = {Ended.NEVER: 10, Ended.ALWAYS: 0, Ended.NOT_ALWAYS: 15}
"""Of the processes of each lane, on top of that of the API process: a program without end takes no CPU from those who answer,
and little from the engine, which is nice too where it computes with the cores."""
AnswerT = TypeVar("AnswerT")


class Workers(Generic[AnswerT]):
    """A few processes, some for each way that programs have ended so far.

    So jobs of a program that has always come to its end do not wait for those of one that does not, and neither does the
    trial of a new one. A job of the former that takes longer than others can wait is given up and begun again among the new
    ones. Those that got out of hand wait for each other. Of the jobs of one program that the event loop asks for, one is run at
    a time, so that many of them leave room for those of others.
    """

    def __init__(
        self,
        module: str,
        read: Callable[[bytes], AnswerT],
        *,
        lanes: Sequence[int],
        max_seconds: float,
        out_of_hand: Callable[[AnswerT], str | None] = lambda _: None,
        environment: Mapping[str, str] | None = None,
        rest_seconds: float = REST_SECONDS,
    ) -> None:
        """`module` is run by the processes: frames in, one answer each out, which `read` reads.

        `lanes`: how many processes there are for programs that are new, that have always ended, and that have not. Where there
        is one lane for all, no job is given up before its time.
        `max_seconds`: for one job, where the process gets little of a busy CPU, and for the turn of a request.
        `out_of_hand`: why, if an answer says that the program got out of hand; the process is not used again then.
        """
        command = [sys.executable, "-m", module]
        assert len(lanes) in (1, len(NICENESS))
        made = {
            ended: [
                _Process(command, environment or {}, max_seconds=max_seconds, niceness=niceness) for _ in range(number)
            ]
            for number, (ended, niceness) in zip(lanes, NICENESS.items(), strict=False)
        }
        self._processes = [one for processes in made.values() for one in processes]
        rooms = {ended: _Lane(made[ended], is_hurried=ended is Ended.ALWAYS) for ended in made}
        self._lanes = {ended: rooms.get(ended, rooms[Ended.NEVER]) for ended in Ended}
        self._read = read
        self._max_seconds = max_seconds
        self._out_of_hand = out_of_hand
        self._rest_seconds = rest_seconds
        self._resting: dict[str, tuple[float, str]] = {}
        """Program -> until when, and why."""
        self._known: dict[str, Ended] = {}
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}
        """Program -> whose jobs wait for each other, and how many there are."""

    async def ask(self, program: str, job: bytes, max_cpu_seconds: float) -> AnswerT:
        """As `ask_now`, for the event loop.

        Raises:
            OutOfHand: as `ask_now`; or others that end like this program held it up for too long.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._max_seconds), self._turn(program):
                while True:
                    self._check_resting(program)
                    lane = self._lane(program)
                    answer = await loop.run_in_executor(lane.threads, self._ask_in, lane, program, job, max_cpu_seconds)
                    if answer is not None:
                        return answer
        except TimeoutError:
            raise OutOfHand(f"it had no turn within {self._max_seconds:g} seconds") from None

    def ask_now(self, program: str, job: bytes, max_cpu_seconds: float) -> AnswerT:
        """Return what comes of a job of a program; blocks. `max_cpu_seconds` is the limit that the process sets itself.

        Raises:
            OutOfHand: the program got out of hand, now or a moment ago.
        """
        answer = None
        while answer is None:
            answer = self._ask_in(self._lane(program), program, job, max_cpu_seconds)
        return answer

    @contextlib.asynccontextmanager
    async def _turn(self, program: str) -> AsyncIterator[None]:
        lock, number = self._turns.get(program, (asyncio.Lock(), 0))
        self._turns[program] = lock, number + 1
        try:
            async with lock:
                yield
        finally:
            lock, number = self._turns.pop(program)
            if number > 1:
                self._turns[program] = lock, number - 1

    def _ask_in(self, lane: _Lane, program: str, job: bytes, max_cpu_seconds: float) -> AnswerT | None:
        """Run a job in its turn; None if the program has got another lane meanwhile."""
        with lane.process(program) as process:
            self._check_resting(program)
            if self._lane(program) is not lane:
                return None
            data = process.ask(job, is_hurried=lane.is_hurried)
            answer = None if data is None else self._read(data)
            why = None if answer is None else self._out_of_hand(answer)
            status = process.close() if answer is None or why is not None else None
            if answer is None:
                if lane.is_hurried and status == -signal.SIGPROF:
                    self._know(program, Ended.SLOWLY)
                    return None
                why = _why(status, max_cpu_seconds)
            self._note(program, why)
            if answer is None or why is not None:
                raise OutOfHand(why)
            process.last = program
            return answer

    def _check_resting(self, program: str) -> None:
        until, why = self._resting.get(program, (0.0, ""))
        if time.monotonic() < until:
            raise OutOfHand(why)

    def _lane(self, program: str) -> _Lane:
        return self._lanes[self._known.get(program, Ended.NEVER)]

    def _note(self, program: str, why: str | None) -> None:
        """Remember how a program ended."""
        if why is None:
            self._know(program, self._known.get(program, Ended.ALWAYS))
            return
        self._know(program, Ended.NOT_ALWAYS)
        if len(self._resting) >= MAX_KNOWN:
            self._resting.clear()
        self._resting[program] = (time.monotonic() + self._rest_seconds, why)

    def _know(self, program: str, ended: Ended) -> None:
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[program] = ended

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that run."""
        return [one.pid for one in self._processes if one.pid is not None]

    def close(self) -> None:
        """End the processes; no job is run any more."""
        for lane in set(self._lanes.values()):
            lane.close()


def _why(status: int | None, max_cpu_seconds: float) -> str:
    """Say how a process ended."""
    if status in (-signal.SIGPROF, -signal.SIGKILL):
        return f"it takes more than {max_cpu_seconds:g} seconds"
    return "it ended the process that runs it"
