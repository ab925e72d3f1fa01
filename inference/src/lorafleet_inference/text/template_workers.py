"""Renders templates of adapters in processes of their own, a few at a time."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import LifoQueue

import msgspec

from lorafleet_inference.text.conversation import Conversation
from lorafleet_inference.text.rendering import Failing, TemplateFailure
from lorafleet_inference.text.template_process import MAX_CPU_SECONDS, Done, Job, read_frame, write_frame

NUM_WORKERS = 2
MAX_SECONDS = 30.0
"""For one rendering, where the process gets little of a busy CPU."""
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
    """Workers, and as many threads that wait for them."""

    def __init__(self, workers: Sequence[_Worker]) -> None:
        self.idle: LifoQueue[_Worker] = LifoQueue()
        for worker in workers:
            self.idle.put(worker)
        self.threads = ThreadPoolExecutor(len(workers), thread_name_prefix="templates")


class TemplateWorkers:
    """A few workers. The last one is for templates that are new here or have ever got out of hand.

    So requests of a template that has always come to its end do not wait for those of one that does not. With a single
    worker all share it.
    """

    def __init__(self, num_workers: int = NUM_WORKERS) -> None:
        self._workers = [_Worker() for _ in range(num_workers)]
        self._doubtful = _Lane(self._workers[-1:])
        self._good = _Lane(self._workers[:-1]) if num_workers > 1 else self._doubtful
        self._resting: dict[str, tuple[float, str]] = {}
        """Source -> until when, and why."""
        self._known: dict[str, bool] = {}
        """Source -> whether it has always come to its end."""

    async def render(self, source: str, asked: Conversation, special_tokens: Mapping[str, str]) -> str:
        """As `render_now`, for the event loop."""
        threads = self._lane(source).threads
        return await asyncio.get_running_loop().run_in_executor(threads, self.render_now, source, asked, special_tokens)

    def render_now(self, source: str, asked: Conversation, special_tokens: Mapping[str, str]) -> str:
        """Return the prompt; blocks.

        Raises:
            TemplateFailure: the template failed, or got out of hand a moment ago.
        """
        until, why = self._resting.get(source, (0.0, ""))
        if time.monotonic() < until:
            raise TemplateFailure(Failing.OUT_OF_HAND, why)
        try:
            job = msgspec.msgpack.encode(Job(source, asked, dict(special_tokens)))
        except OverflowError as error:
            raise TemplateFailure(Failing.REFUSED, f"a number is too large: {error}") from error
        idle = self._lane(source).idle
        worker = idle.get()
        try:
            done = worker.render(job)
        finally:
            idle.put(worker)
        failing = None if done.text is not None else Failing(done.failing)
        self._note(source, failing, done.message)
        if failing is not None:
            raise TemplateFailure(failing, done.message)
        assert done.text is not None
        return done.text

    def _lane(self, source: str) -> _Lane:
        return self._good if self._known.get(source, False) else self._doubtful

    def _note(self, source: str, failing: Failing | None, why: str) -> None:
        """Remember how a template ended."""
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        if failing is not Failing.OUT_OF_HAND:
            self._known.setdefault(source, True)
            return
        self._known[source] = False
        if len(self._resting) >= MAX_KNOWN:
            self._resting.clear()
        self._resting[source] = (time.monotonic() + REST_SECONDS, why)

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that run."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def close(self) -> None:
        """End the processes; nothing renders any more."""
        for lane in (self._good, self._doubtful):
            lane.threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()
