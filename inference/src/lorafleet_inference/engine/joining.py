"""A host beside that of the engine process: joins it, runs its ranks, keeps files of adapters for them. Needs no torch."""

import logging
import shutil
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from lorafleet_common.errors import ConfigError
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.cores import usable_cores
from lorafleet_inference.engine.hosts import PIECE_BYTES, SILENT_SECONDS
from lorafleet_inference.engine.rank_program import RankProgram
from lorafleet_inference.model.ranks.handshake import Stranger, introduce
from lorafleet_inference.model.ranks.host_messages import (
    ALIVE_SECONDS,
    HOST_CODEC,
    Admitted,
    Alive,
    Drop,
    Hello,
    Join,
    Kind,
    Put,
    RankEnded,
    Refused,
    Stored,
)
from lorafleet_inference.model.ranks.wire import Channel, NotUnderstood
from lorafleet_inference.model_print import print_of

logger = logging.getLogger(__name__)
AGAIN_SECONDS = 0.5
"""Between two attempts to reach the engine process, which may not be there yet."""
END_SECONDS = 30.0
"""Ranks whose engine has ended have so long before they are killed."""


class Phase(StrEnum):
    """How far a host is."""

    WAITING = "waiting for the engine"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Leader:
    """The engine process that a host joins."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


class HostProgram:
    """The ranks of this host."""

    def __init__(
        self,
        index: int,
        name: str,
        leader: Leader,
        config: EngineConfig,
        run: Callable[[Sequence[int]], RankProgram] = RankProgram,
        *,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        """`index`: of the host, from 1 on. `run`: starts a rank, given the numbers of its pipes."""
        self._run = run
        self._index, self._name, self._config = index, name, config
        self.leader = leader
        self._silent_seconds = silent_seconds
        self._sending = threading.Lock()
        self._stopping = threading.Event()
        self._aborting = False
        self._control: Channel | None = None
        self._ranks: dict[int, RankProgram] = {}
        self._statuses: dict[int, int] = {}
        self.phase = Phase.WAITING

    def run(self) -> int:
        """Join, and serve until the engine ends; return 0 where it did so on its own account, else 1.

        Raises:
            ConfigError: the engine does not let this host in, or is not there in time.
        """
        with ExitStack() as ends:
            folder = Path(ends.enter_context(TemporaryDirectory(prefix="lorafleet-adapters-")))
            control = self._first_connection()
            if control is None:
                return 0
            ends.enter_context(closing(control))
            self._control = control
            admitted = self._join(control, folder)
            files = Channel(self._connection("files"), HOST_CODEC)
            ends.callback(files.end)
            threading.Thread(target=_keep_files, args=(files, folder), name="files", daemon=True).start()
            ends.callback(self._end_ranks)
            for rank in range(admitted.first_rank, admitted.first_rank + admitted.num_ranks):
                self._start(rank, control)
            self.phase = Phase.RUNNING
            logger.info(
                "%d ranks from %d on run for the engine at %s", admitted.num_ranks, admitted.first_rank, self.leader
            )
            threading.Thread(target=self._beat, args=(control,), name="beat", daemon=True).start()
            why = self._listen(control)
            self.phase = Phase.ENDED
            self._wait_for_ranks()
            if len(self._statuses) == len(self._ranks) and not any(self._statuses.values()):
                logger.info("the engine has ended")
                return 0
            logger.error("this host ends: %s", why)
            return 1

    def stop(self) -> None:
        """End where the engine is still waited for; else it is the engine that ends this host. From any thread."""
        self._stopping.set()

    def abort(self) -> None:
        """End it now, and with it the engine. From any thread."""
        self.stop()
        self._aborting = True
        for process in list(self._ranks.values()):
            process.kill()
        if self._control is not None:
            self._control.end()

    def _first_connection(self) -> Channel | None:
        """Return the first connection that can be had; None: told to stop before."""
        limit = self._config.join_timeout_seconds
        deadline, said = time.monotonic() + limit, ""
        while not self._stopping.is_set():
            try:
                return Channel(self._connection("control"), HOST_CODEC)
            except Stranger as error:
                raise ConfigError("--ranks-secret", f"the engine at {self.leader}: {error}") from error
            except OSError as error:
                if time.monotonic() > deadline:
                    words = f"no engine at {self.leader} within {limit:g} seconds (--join-timeout-seconds): {error}"
                    raise ConfigError("--leader", words) from error
                if str(error) != said:
                    said = str(error)
                    logger.info("waiting for the engine at %s: %s", self.leader, said)
            self._stopping.wait(AGAIN_SECONDS)
        return None

    def _connection(self, kind: Kind, rank: int | None = None) -> socket.socket:
        connection = socket.create_connection((self.leader.address, self.leader.port), self._silent_seconds)
        try:
            introduce(connection, self._config.ranks_secret)
            Channel(connection, HOST_CODEC).send(Hello(self._index, kind, rank))
        except OSError:
            connection.close()
            raise
        connection.settimeout(None)
        return connection

    def _join(self, control: Channel, folder: Path) -> Admitted:
        config = replace(self._config, num_threads=self._config.num_threads or usable_cores(), ranks_secret="-")
        control.send(Join(self._name, config, print_of(Path(config.model)), str(folder)))
        control.limit(self._silent_seconds)
        answer: object = control.recv()
        if isinstance(answer, Refused):
            raise ConfigError(answer.option or "--leader", answer.message)
        if not isinstance(answer, Admitted):
            raise NotUnderstood(f"an engine says {type(answer).__name__} to a host that joins")
        return answer

    def _start(self, rank: int, control: Channel) -> None:
        with ExitStack() as ends:
            kinds: tuple[Kind, ...] = ("life", "steps", "loads")
            pipes = [ends.enter_context(closing(self._connection(kind, rank))) for kind in kinds]
            self._ranks[rank] = self._run([pipe.fileno() for pipe in pipes])
        if self._aborting:
            self._ranks[rank].kill()
        threading.Thread(target=self._wait_for, args=(rank, control), name="rank", daemon=True).start()

    def _wait_for(self, rank: int, control: Channel) -> None:
        status = self._ranks[rank].wait(None)
        assert status is not None
        self._statuses[rank] = status
        if status:
            logger.error("the process of rank %d ended with status %d", rank, status)
        with suppress(OSError):
            self._say(control, RankEnded(rank, status))

    def _beat(self, control: Channel) -> None:
        with suppress(OSError):
            while self.phase is Phase.RUNNING:
                self._say(control, Alive())
                time.sleep(ALIVE_SECONDS)

    def _say(self, control: Channel, message: object) -> None:
        with self._sending:
            control.send(message)

    def _listen(self, control: Channel) -> str:
        """Return when the engine is gone, with the reason."""
        try:
            while True:
                control.recv()
        except TimeoutError:
            return f"the engine gave no sign of life for {self._silent_seconds:g} seconds"
        except EOFError:
            return "the engine has closed the connection"
        except OSError as error:
            return f"the connection with the engine is lost: {error}"

    def _wait_for_ranks(self) -> None:
        """The engine is gone, so they end by themselves; a status that comes now is one that the engine has not waited for."""
        deadline = time.monotonic() + END_SECONDS
        while len(self._statuses) < len(self._ranks) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _end_ranks(self) -> None:
        for process in self._ranks.values():
            process.kill()
            process.wait(END_SECONDS)


def _keep_files(files: Channel, folder: Path) -> None:
    """Keep what comes, until the connection ends."""
    with suppress(OSError, EOFError):
        while True:
            message: object = files.recv()
            match message:
                case Put(number, name, size):
                    files.send(Stored(_store(folder / str(number), name, size, files.recv_bytes)))
                case Drop(number):
                    shutil.rmtree(folder / str(number), ignore_errors=True)
    files.close()


def _store(folder: Path, name: str, size: int, receive: Callable[[int], bytearray]) -> str:
    """Write a file; return why that was not possible. All of it is received in any case.

    Raises:
        OSError, EOFError: it does not come.
    """
    path = PurePosixPath(name)
    problem = (
        "" if path.parts and not path.is_absolute() and ".." not in path.parts else f"{name!r} is no name of a file"
    )
    place = folder / path if not problem else folder
    with ExitStack() as ends:
        file = None
        if not problem:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                file = ends.enter_context(place.open("wb", buffering=0))
            except OSError as error:
                problem = f"{name} cannot be kept: {error.strerror}"
        while size:
            piece = receive(min(size, PIECE_BYTES))
            size -= len(piece)
            if file is not None and not problem:
                left = memoryview(piece)
                try:
                    while left:
                        left = left[file.write(left) :]
                except OSError as error:
                    problem = f"{name} cannot be kept: {error.strerror}"
    return problem
