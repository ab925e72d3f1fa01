"""The API process's side of the engine: starts it, submits to it, hears from it. Imports no torch."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from lorafleet_common.errors import ConfigError
from lorafleet_common.logs import JsonFormatter
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.channel import StartEngine, frame, messages_from
from lorafleet_inference.engine.engine_program import EngineProcess, RunEngine, run_program
from lorafleet_inference.engine.merging import Merge
from lorafleet_inference.engine.messages import (
    AdapterKey,
    AdapterStatus,
    Cancel,
    DeviceTier,
    EngineFailed,
    EngineReady,
    EngineStats,
    FromEngine,
    Loading,
    Ping,
    RegisterAdapter,
    ReleaseAdapter,
    Shutdown,
    Submit,
    ToEngine,
    Tokens,
)
from lorafleet_inference.engine.token_events import FinishReason, TokenEvent, joined
from lorafleet_inference.errors import EngineFailure

logger = logging.getLogger(__name__)
_AnswerT = TypeVar("_AnswerT")
OnEvent = Callable[[TokenEvent], None]
CLOSE_SECONDS = 10.0
"""After that an engine that was told to end, or that said that it ends, is killed."""
NUM_PINGS = 4
"""In the time that a step may take: so many that are not answered mean that the engine hangs."""


def _nothing(_: TokenEvent) -> None:
    """Take no note of an event."""


class EngineClient:
    """One engine process. Made by `start`; every method is for the event loop that started it."""

    def __init__(self, process: EngineProcess, writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._writer = writer
        self._ready: asyncio.Future[EngineReady] = asyncio.get_running_loop().create_future()
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done when nothing will come any more, whoever ended it."""
        self._streams: dict[str, tuple[asyncio.Queue[TokenEvent], OnEvent]] = {}
        self._arrivals: dict[AdapterKey, list[tuple[bool, asyncio.Future[AdapterStatus]]]] = {}
        """Calls of `register` that wait; with whether they wait for the device."""
        self._releases: dict[AdapterKey, list[asyncio.Future[None]]] = {}
        self._listeners: list[Callable[[AdapterStatus], None]] = []
        self._stats: EngineStats | None = None
        self.read_percent: int | None = None
        """How much of the weights the engine has read; None before it says so."""
        self._last_words: str | None = None
        self.config_error: ConfigError | None = None
        """Why the engine could not start, where an option is to blame."""
        self._closing = False
        self._has_spoken = False
        """Since the last look of `_watch`."""
        self._listening: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, config: EngineConfig, run: RunEngine = run_program) -> Self:
        """Start the engine process and return at once; it loads the base model meanwhile."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await run(config, msgspec.json.encode(_start_message(config)), theirs.fileno())
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        client = cls(process, writer)
        client._listening = asyncio.create_task(client._listen(reader))
        client._watching = asyncio.create_task(client._watch(config.max_step_seconds))
        return client

    async def wait_ready(self) -> EngineReady:
        """Wait for the base model.

        Raises:
            EngineFailure: the engine ended first; with its last words.
        """
        return await self._answer(self._ready)

    @property
    def pid(self) -> int:
        """Id of the engine process."""
        return self._process.pid

    @property
    def facts(self) -> EngineReady | None:
        """What the engine said when it was ready; None before."""
        return self._ready.result() if self._ready.done() else None

    @property
    def stats(self) -> EngineStats | None:
        """The last counters that came."""
        return self._stats

    @property
    def failed(self) -> asyncio.Future[str]:
        """Done when the engine is lost, with its last words; never by `close`."""
        return self._failed

    async def submit(self, message: Submit, on_event: OnEvent = _nothing) -> AsyncGenerator[TokenEvent, None]:
        """Run one sequence and yield its events; the last one is terminal. Closing early cancels it.

        Tokens that came while nobody took them are one event; an end that is no answer comes after them, alone.
        `on_event` is told each event as it comes, taken or not.
        """
        queue: asyncio.Queue[TokenEvent] = asyncio.Queue()
        assert message.request_id not in self._streams, "request ids are unique"
        if self._gone.done():
            yield _lost(message.request_id, self._gone.result())
            return
        self._streams[message.request_id] = queue, on_event
        ended = False
        try:
            self._send(message)
            while not ended:
                waiting = [await queue.get()]
                while waiting[-1].finish is None and not queue.empty():
                    waiting.append(queue.get_nowait())
                last = waiting[-1]
                ended = last.finish is not None
                if last.finish in (FinishReason.ERROR, FinishReason.CANCELLED) and len(waiting) > 1:
                    yield joined(waiting[:-1])
                    yield last
                else:
                    yield joined(waiting)
        finally:
            self._streams.pop(message.request_id, None)
            if not ended:
                self._send(Cancel(message.request_id))

    def cancel(self, request_id: str) -> None:
        """Stop a request; its stream ends with CANCELLED."""
        self._send(Cancel(request_id))

    async def register(self, key: AdapterKey, directory: Path, *, resident: bool, pinned: bool) -> AdapterStatus:
        """Make an adapter known and, if `resident`, wait until it is on the device.

        A refusal or a failed load is an answer with its reason; `tier` None means that the engine does not know it.

        Raises:
            EngineFailure: the engine was lost.
        """
        return await self._register(RegisterAdapter(key, str(directory), resident, pinned))

    async def register_merge(self, key: AdapterKey, merge: Merge) -> AdapterStatus:
        """Make a merge of adapters known; the answer is as of `register`. It is loaded when a request names it.

        Raises:
            EngineFailure: the engine was lost.
        """
        return await self._register(RegisterAdapter(key, "", resident=False, merge=merge))

    async def release(self, key: AdapterKey) -> None:
        """Forget an adapter; returns when its requests have ended and its memory is free.

        Raises:
            EngineFailure: the engine was lost.
        """
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._releases.setdefault(key, []).append(answer)
        self._send(ReleaseAdapter(key))
        await self._answer(answer)

    def subscribe(self, on_status: Callable[[AdapterStatus], None]) -> None:
        """Call back on every change of an adapter's tier."""
        self._listeners.append(on_status)

    async def close(self) -> None:
        """End the engine process."""
        self._closing = True
        self._send(Shutdown())
        await self._wait_ended()
        for task in (self._listening, self._watching):
            if task is not None:
                await task
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _register(self, message: RegisterAdapter) -> AdapterStatus:
        for release in self._releases.pop(message.key, []):
            if not release.done():  # known again: nothing is left to wait for
                release.set_result(None)
        answer: asyncio.Future[AdapterStatus] = asyncio.get_running_loop().create_future()
        self._arrivals.setdefault(message.key, []).append((message.resident, answer))
        self._send(message)
        return await self._answer(answer)

    async def _answer(self, answer: asyncio.Future[_AnswerT]) -> _AnswerT:
        await asyncio.wait((answer, self._gone), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise EngineFailure(self._gone.result())

    async def _wait_ended(self) -> int:
        """Wait for the process, which ends by itself or is made to; return its status."""
        try:
            return await asyncio.wait_for(self._process.wait(), CLOSE_SECONDS)
        except TimeoutError:
            self._process.kill()
            return await self._process.wait()

    def _send(self, message: ToEngine) -> None:
        if not self._writer.is_closing():
            self._writer.write(frame(message))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            async for message in messages_from(reader):
                self._hear(message)
                if self._last_words is not None:
                    break
        except msgspec.MsgspecError as error:
            self._last_words = f"what the engine sent cannot be read: {error}"
            self._process.kill()
        except Exception as error:  # what is known of requests and adapters may be wrong from here on
            logger.exception("what the engine said was not taken in")
            self._last_words = f"what the engine said was not taken in: {type(error).__name__}: {error}"
            self._process.kill()
        code = await self._wait_ended()
        words = self._last_words or f"the engine process ended with status {code}"
        self._gone.set_result(words)
        for request_id, (queue, _) in self._streams.items():
            queue.put_nowait(_lost(request_id, words))
        if not self._closing:
            self._failed.set_result(words)

    async def _watch(self, max_step_seconds: float) -> None:
        """End an engine that hangs. Loading the base may last as long as it likes."""
        await asyncio.wait((self._ready, self._gone), return_when=asyncio.FIRST_COMPLETED)
        unanswered = 0
        while unanswered < NUM_PINGS:
            self._has_spoken = False
            self._send(Ping())
            await asyncio.wait((self._gone,), timeout=max_step_seconds / NUM_PINGS)
            if self._gone.done():
                return
            unanswered = 0 if self._has_spoken else unanswered + 1
        self._last_words = f"the engine gave no sign of life for {max_step_seconds:g} seconds"
        logger.error("%s; it is ended, and where its threads were follows", self._last_words)
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGABRT)
        await self._wait_ended()

    def _hear(self, message: FromEngine) -> None:
        self._has_spoken = True
        match message:
            case Tokens(events):
                for event in events:
                    stream = self._streams.get(event.request_id)
                    if stream is not None:
                        queue, on_event = stream
                        queue.put_nowait(event)
                        on_event(event)
            case AdapterStatus():
                self._hear_status(message)
            case EngineStats():
                self._stats = message
            case Loading(percent):
                self.read_percent = percent
            case EngineReady():
                self._ready.set_result(message)
            case EngineFailed(words, option):
                self._last_words = words
                self.config_error = ConfigError(option, words) if option else None

    def _hear_status(self, status: AdapterStatus) -> None:
        there = status.tier is DeviceTier.DEVICE or status.tier is None or status.reason is not None
        waiting = self._arrivals.pop(status.key, [])
        answered = [answer for for_device, answer in waiting if there or not for_device]
        left = [pair for pair in waiting if pair[0] and not there]
        if left:
            self._arrivals[status.key] = left
        for answer in answered:
            if not answer.done():
                answer.set_result(status)
        if status.tier is None:
            for release in self._releases.pop(status.key, []):
                if not release.done():
                    release.set_result(None)
        for listener in self._listeners:
            listener(status)


def _lost(request_id: str, words: str) -> TokenEvent:
    return TokenEvent(request_id, finish=FinishReason.ERROR, error=words)


def _start_message(config: EngineConfig) -> StartEngine:
    """The engine process logs as this one does."""
    handlers = logging.getLogger().handlers
    as_json = any(isinstance(handler.formatter, JsonFormatter) for handler in handlers)
    level = logging.getLevelName(logging.getLogger("lorafleet_inference").getEffectiveLevel())
    return StartEngine(config=config, log_level=level, log_format="json" if as_json else "text")
