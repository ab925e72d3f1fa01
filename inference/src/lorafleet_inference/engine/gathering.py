"""Awaits the other hosts of a model: who knows the secret and was started with the same options is one of them."""

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from lorafleet_common.errors import ConfigError
from lorafleet_common.sockets import bind
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.hosts import SILENT_SECONDS, Host
from lorafleet_inference.engine.steps import StepFailed
from lorafleet_inference.model.ranks.handshake import Stranger, admit
from lorafleet_inference.model.ranks.host_messages import HOST_CODEC, Hello, Join, Kind, Refused
from lorafleet_inference.model.ranks.messages import Pipes, pipe
from lorafleet_inference.model.ranks.wire import Channel, NotUnderstood
from lorafleet_inference.model_print import print_of

logger = logging.getLogger(__name__)
MAX_STRANGERS: Final = 64
"""Connections that may be at their handshake at the same time."""
OF_EACH_HOST: Final = frozenset(
    {
        "model",
        "speculative_model",
        "kernel_cache",
        "num_threads",
        "ranks_host",
        "ranks_port",
        "ranks_secret",
        "join_timeout_seconds",
    }
)
"""Fields of the config that hosts need not have in common."""
PIPES: Final[tuple[Kind, ...]] = ("life", "steps", "loads")


@dataclass(frozen=True, slots=True)
class _Came:
    hello: Hello
    connection: socket.socket


@dataclass(frozen=True, slots=True)
class _Went:
    host: Host
    words: str


class Gathering:
    """The hosts of one start. Used by one thread."""

    def __init__(self, config: EngineConfig, *, silent_seconds: float = SILENT_SECONDS) -> None:
        """Listen for them.

        Raises:
            ConfigError: the port cannot be had.
        """
        self._config, self._silent_seconds = config, silent_seconds
        self._listener = bind(config.ranks_host, config.ranks_port, option="--ranks-port")
        self._strangers = threading.BoundedSemaphore(MAX_STRANGERS)
        self._news: queue.SimpleQueue[_Came | _Went] = queue.SimpleQueue()
        self._closed = False
        self._on_lost: Callable[[Host, str], None] | None = None
        self._losing = threading.Lock()
        self._hosts: dict[int, Host] = {}
        self._channels: dict[int, dict[Kind, Channel]] = {}
        """Pipes by rank, as far as they came."""
        threading.Thread(target=self._accept, name="hosts", daemon=True).start()

    def wait(self) -> list[Host]:
        """Return the other hosts in their order, when they are there with all their connections.

        Raises:
            StepFailed: one did not come in time, or went; names host and ranks.
            ConfigError: one was started with another model, or with options that do not go with those of the engine.
        """
        limit = self._config.join_timeout_seconds
        deadline = time.monotonic() + limit
        logger.info(
            "waiting at port %d for %d more hosts of the model", self._listener.getsockname()[1], self._config.hosts - 1
        )
        while missing := self._missing():
            try:
                news = self._news.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise StepFailed(f"{missing} did not come within {limit:g} seconds (--join-timeout-seconds)") from None
            match news:
                case _Came(hello, connection):
                    self._take(hello, connection)
                case _Went(host, words):
                    raise StepFailed(f"rank {host.ranks.start} on {host.name}: {words}")
        self._stop_listening()
        return [self._hosts[index] for index in sorted(self._hosts)]

    def follow(self, on_lost: Callable[[Host, str], None]) -> None:
        """Have it called, on any thread, when a host is lost from now on, or was since `wait`."""
        with self._losing:
            self._on_lost = on_lost
        while not self._news.empty():
            news = self._news.get()
            if isinstance(news, _Went):
                on_lost(news.host, news.words)

    def close(self) -> None:
        """Let all hosts go."""
        self._closed = True
        self._stop_listening()
        self._pass_over_news()
        for host in self._hosts.values():
            host.close()
        for channels in self._channels.values():
            for channel in channels.values():
                channel.close()

    def _stop_listening(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread at it
        self._listener.close()

    def _missing(self) -> str:
        """Return which host is not there yet, with its ranks; empty: all are."""
        for index in range(1, self._config.hosts):
            host, ranks = self._hosts.get(index), self._ranks_of(index)
            if host is None or host.files is None or len(host.pipes) < len(ranks):
                words = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
                return f"host {index} with {words}"
        return ""

    def _ranks_of(self, index: int) -> range:
        each = self._config.ranks_per_host
        return range(index * each, (index + 1) * each)

    def _accept(self) -> None:
        while True:
            try:
                connection, (address, *_) = self._listener.accept()
            except OSError:
                return
            if not self._strangers.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._meet, args=(connection, address), name="handshake", daemon=True).start()

    def _meet(self, connection: socket.socket, address: str) -> None:
        try:
            admit(connection, self._config.ranks_secret)
            hello = Channel(connection, HOST_CODEC).recv()
            if not isinstance(hello, Hello) or not 0 < hello.host < self._config.hosts:
                raise Stranger("it is no host of this model")
        except (OSError, EOFError) as error:
            logger.warning("a connection of %s to the port of the hosts is refused: %s", address, error)
            connection.close()
        else:
            self._news.put(_Came(hello, connection))
            if self._closed:
                self._pass_over_news()
        finally:
            self._strangers.release()

    def _pass_over_news(self) -> None:
        with suppress(queue.Empty):
            while True:
                news = self._news.get_nowait()
                if isinstance(news, _Came):
                    news.connection.close()

    def _take(self, hello: Hello, connection: socket.socket) -> None:
        host = self._hosts.get(hello.host)
        if hello.kind == "control":
            self._join(hello.host, Channel(connection, HOST_CODEC))
        elif host is None or (hello.kind != "files" and hello.rank not in host.ranks):
            logger.warning("host %d opened a pipe (%s) that it has no business with", hello.host, hello.kind)
            connection.close()
        elif hello.kind == "files":
            host.files = Channel(connection, HOST_CODEC)
        else:
            assert hello.rank is not None
            connection.settimeout(None)
            channels = self._channels.setdefault(hello.rank, {})
            channels[hello.kind] = pipe(connection)
            if len(channels) == len(PIPES):
                host.pipes[hello.rank] = Pipes(channels["life"], channels["steps"], channels["loads"])

    def _join(self, index: int, control: Channel) -> None:
        """Let a host in.

        Raises:
            ConfigError: it does not go with this one.
            StepFailed: it is gone already.
        """
        try:
            join: object = control.recv()
            if not isinstance(join, Join):
                raise NotUnderstood("it does not say what it has")
            if index in self._hosts:
                control.send(Refused(f"host {index} is there already: {self._hosts[index].name}", ""))
                control.close()
                return
            refusal = self._refusal(join)
            if refusal is not None:
                control.send(Refused(refusal.problem, refusal.option))
                control.close()
                raise ConfigError(refusal.option, f"host {index}, {join.name}: {refusal.problem}")
            host = Host(index, join, control, self._ranks_of(index), self._went, silent_seconds=self._silent_seconds)
        except (OSError, EOFError) as error:
            control.close()
            raise StepFailed(f"host {index} went while it was let in: {error}") from error
        self._hosts[index] = host
        logger.info("host %d is there: %s", index, host.name)

    def _refusal(self, join: Join) -> ConfigError | None:
        found = difference(self._config, join.config)
        if found is None and join.model_print != print_of(Path(self._config.model)):
            return ConfigError("--model", "is not the same on this host as on the first one")
        return found

    def _went(self, host: Host, words: str) -> None:
        with self._losing:
            if self._on_lost is None:
                self._news.put(_Went(host, words))
                return
        self._on_lost(host, words)


def difference(first: EngineConfig, other: EngineConfig) -> ConfigError | None:
    """Return the refusal of an option that a host has otherwise than the first one, where they have to be alike."""
    for field in fields(EngineConfig):
        here, there = getattr(first, field.name), getattr(other, field.name)
        if field.name not in OF_EACH_HOST and here != there:
            option = "--" + field.name.removesuffix("_bytes").replace("_", "-")
            return ConfigError(
                option, f"is {there} on this host and {here} on the first one, where both have to be alike"
            )
    return None
