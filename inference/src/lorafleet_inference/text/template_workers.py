"""Renders templates of adapters in processes of their own, a few at a time."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto

import msgspec

from lorafleet_inference.text.conversation import Conversation
from lorafleet_inference.text.frames import read_frame, write_frame
from lorafleet_inference.text.rendering import Failing, TemplateFailure
from lorafleet_inference.text.template_process import MAX_CPU_SECONDS, Done, Job

NUM_WORKERS = 3
MAX_SECONDS = 30.0
"""For one rendering, where the process gets little of a busy CPU; and for the turn of a request."""
REST_SECONDS = 10.0
"""For a template that got out of hand, so that its requests do not hold up those of others."""
MAX_KNOWN = 1024
"""Templates of which it is remembered how they ended."""


class _Worker:
    """One process; started when it is needed, and again after it ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def render(self, job: bytes) -> Done:
        process = self._process
        if process is None:
            process = self._process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        watch = threading.Timer(MAX_SECONDS, process.kill)
        watch.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                write_frame(process.stdin, job)
            answer = read_frame(process.stdout)
        finally:
            watch.cancel()
        done = None if answer is None else msgspec.msgpack.decode(answer, type=Done)
        if done is None or done.failing == Failing.OUT_OF_HAND:
            status = self.close()
            if done is None:
                slow = status in (-signal.SIGPROF, -signal.SIGKILL)
                why = (
                    f"it takes more than {MAX_CPU_SECONDS:g} seconds"
                    if slow
                    else "it ended the process that renders it"
                )
                return Done(None, Failing.OUT_OF_HAND.value, why)
        assert done is not None
        return done

    def _start(self) -> subprocess.Popen[bytes]:
        # nothing else of the environment: it is not a template's to know
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME", "LANG") if name in os.environ}
        process = subprocess.Popen(
            [sys.executable, "-m", "lorafleet_inference.text.template_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**kept, "HF_HUB_OFFLINE": "1"},
        )
        assert process.stdout is not None
        read_frame(process.stdout)  # READY; what it needs to begin is not the template's time
        return process

    def close(self) -> int | None:
        """End the process; return its status, None if there was none."""
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        return process.wait()


class _Lane:
    """A worker, and the thread that waits for it."""

    def __init__(self, worker: _Worker) -> None:
        self.worker = worker
        self.turn = threading.Lock()
        self.threads = ThreadPoolExecutor(1, thread_name_prefix="templates")


class Ended(Enum):
    """How a template has ended so far."""

    NEVER = auto()
    """It is new here."""
    ALWAYS = auto()
    NOT_ALWAYS = auto()
    """It got out of hand at least once."""


class TemplateWorkers:
    """A few workers, one for each way that templates have ended so far.

    So requests of a template that has always come to its end do not wait for those of one that does not, and neither does
    the trial of a new one. Those that got out of hand wait for each other. Fewer workers than ways are shared.
    """

    def __init__(self, num_workers: int = NUM_WORKERS) -> None:
        self._workers = [_Worker() for _ in range(num_workers)]
        lanes = [_Lane(worker) for worker in self._workers]
        self._lanes = {ended: lanes[min(place, num_workers - 1)] for place, ended in enumerate(Ended)}
        self._resting: dict[str, tuple[float, str]] = {}
        """Source -> until when, and why."""
        self._known: dict[str, Ended] = {}

    async def render(self, source: str, asked: Conversation, special_tokens: Mapping[str, str]) -> str:
        """As `render_now`, for the event loop.

        Raises:
            TemplateFailure: as `render_now`; or others that end like this template held it up for too long.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(MAX_SECONDS):
                while True:
                    lane = self._lane(source)
                    text = await loop.run_in_executor(
                        lane.threads, self._render_in, lane, source, asked, special_tokens
                    )
                    if text is not None:
                        return text
        except TimeoutError:
            why = f"it had no turn within {MAX_SECONDS:g} seconds"
            raise TemplateFailure(Failing.OUT_OF_HAND, why) from None

    def render_now(self, source: str, asked: Conversation, special_tokens: Mapping[str, str]) -> str:
        """Return the prompt; blocks.

        Raises:
            TemplateFailure: the template failed, or got out of hand a moment ago.
        """
        text = None
        while text is None:
            text = self._render_in(self._lane(source), source, asked, special_tokens)
        return text

    def _render_in(
        self, lane: _Lane, source: str, asked: Conversation, special_tokens: Mapping[str, str]
    ) -> str | None:
        """Render in its turn; None if the template has got another lane meanwhile."""
        try:
            job = msgspec.msgpack.encode(Job(source, asked, dict(special_tokens)))
        except OverflowError as error:
            raise TemplateFailure(Failing.REFUSED, f"a number is too large: {error}") from error
        with lane.turn:
            until, why = self._resting.get(source, (0.0, ""))
            if time.monotonic() < until:
                raise TemplateFailure(Failing.OUT_OF_HAND, why)
            if self._lane(source) is not lane:
                return None
            done = lane.worker.render(job)
            failing = None if done.text is not None else Failing(done.failing)
            self._note(source, failing, done.message)
        if failing is not None:
            raise TemplateFailure(failing, done.message)
        return done.text

    def _lane(self, source: str) -> _Lane:
        return self._lanes[self._known.get(source, Ended.NEVER)]

    def _note(self, source: str, failing: Failing | None, why: str) -> None:
        """Remember how a template ended."""
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        if failing is not Failing.OUT_OF_HAND:
            self._known.setdefault(source, Ended.ALWAYS)
            return
        self._known[source] = Ended.NOT_ALWAYS
        if len(self._resting) >= MAX_KNOWN:
            self._resting.clear()
        self._resting[source] = (time.monotonic() + REST_SECONDS, why)

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that run."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def close(self) -> None:
        """End the processes; nothing renders any more."""
        for lane in self._lanes.values():
            lane.threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()
