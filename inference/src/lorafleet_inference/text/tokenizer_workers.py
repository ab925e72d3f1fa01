"""Tokenises with the tokenizers of adapters in processes of their own, a few at a time."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec

from lorafleet_inference.text.frames import read_frame, write_frame
from lorafleet_inference.text.own_tokenizer import OwnTokenizer
from lorafleet_inference.text.tokenizer_process import (
    MAX_ENCODE_CPU_SECONDS,
    MAX_LOAD_CPU_SECONDS,
    Answer,
    Describe,
    Encode,
    Job,
    Place,
)

NUM_WORKERS = 2
MAX_SECONDS = 60.0
"""For one job, where the process gets little of a busy CPU."""
REST_SECONDS = 10.0
"""For a tokenizer that got out of hand, so that its requests do not hold up those of others."""
MAX_RESTING = 1024


class TokenizerFailure(Exception):
    """A tokenizer cannot be read or does not tokenise; the message says why."""


class _Worker:
    """One process; started when it is needed, and again after it ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.keeps = ""
        """The key of the tokenizer that it used last."""

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def ask(self, job: bytes) -> Answer | int:
        """Return what comes of a job, or how the process ended in it."""
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
        if answer is None:
            return self.close() or 0
        return msgspec.msgpack.decode(answer, type=Answer)

    def _start(self) -> subprocess.Popen[bytes]:
        # nothing else of the environment: it is not a tokenizer's to know
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME", "LANG") if name in os.environ}
        process = subprocess.Popen(
            [sys.executable, "-m", "lorafleet_inference.text.tokenizer_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**kept, "TOKENIZERS_PARALLELISM": "false"},
        )
        assert process.stdout is not None
        read_frame(process.stdout)  # READY; what it needs to begin is not the tokenizer's time
        return process

    def close(self) -> int | None:
        """End the process; return its status, None if there was none."""
        process, self._process = self._process, None
        self.keeps = ""
        if process is None:
            return None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        return process.wait()


class TokenizerWorkers:
    """A few workers, and the tokenizers that got out of hand just now."""

    def __init__(self, num_workers: int = NUM_WORKERS) -> None:
        self._workers = [_Worker() for _ in range(num_workers)]
        self._idle = list(self._workers)
        self._became_idle = threading.Condition()
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="own-tokenizers")
        self._resting: dict[str, tuple[float, str]] = {}
        """Folder or key -> until when, and why."""

    async def encode(self, job: Encode) -> tuple[int, ...] | None:
        """Return the token ids of a text, None if they are far too many.

        Raises:
            TokenizerFailure: it does not tokenise, or got out of hand a moment ago.
        """
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(self._threads, self._run, job, job.key, job.key)
        return answer.token_ids

    def describe(self, place: Place, num_rows: int) -> OwnTokenizer:
        """Read a tokenizer; blocks.

        Raises:
            TokenizerFailure: it cannot be read.
        """
        described = self._run(Describe(place, num_rows), "", place.directory).tokenizer
        assert described is not None, "an answer without an error has what was asked for"
        return described

    def _run(self, job: Job, key: str, name: str) -> Answer:
        until, why = self._resting.get(name, (0.0, ""))
        if time.monotonic() < until:
            raise TokenizerFailure(why)
        try:
            data = msgspec.msgpack.encode(job)
        except UnicodeEncodeError as error:
            raise TokenizerFailure("the text is not Unicode") from error
        worker = self._take(key)
        try:
            answer = worker.ask(data)
            if isinstance(answer, Answer) and not answer.error:
                worker.keeps = answer.tokenizer.key if answer.tokenizer else key
        finally:
            with self._became_idle:
                self._idle.append(worker)
                self._became_idle.notify()
        if isinstance(answer, int):
            why = "it ended the process that runs it"
            if answer in (-signal.SIGPROF, -signal.SIGKILL):
                seconds = MAX_LOAD_CPU_SECONDS if isinstance(job, Describe) else MAX_ENCODE_CPU_SECONDS
                why = f"it takes more than {seconds:g} seconds"
            if len(self._resting) >= MAX_RESTING:
                self._resting.clear()
            self._resting[name] = (time.monotonic() + REST_SECONDS, why)
            raise TokenizerFailure(why)
        if answer.error:
            raise TokenizerFailure(answer.error)
        return answer

    def _take(self, key: str) -> _Worker:
        """Return an idle worker: one that has the tokenizer, else the one that was used last."""
        with self._became_idle:
            while not self._idle:
                self._became_idle.wait()
            worker = next((one for one in self._idle if key and one.keeps == key), self._idle[-1])
            self._idle.remove(worker)
            return worker

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that run."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def close(self) -> None:
        """End the processes; nothing is tokenised any more."""
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()
