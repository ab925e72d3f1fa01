"""The other hosts of a model that spans several, as the engine process sees them: admitted, heard, and given files of adapters."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Condition

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.types import AdapterPlan, MergedParts
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.model.ranks.host_messages import (
    ALIVE_SECONDS,
    Admitted,
    Alive,
    Drop,
    Join,
    Put,
    RankEnded,
    Stored,
)
from lorafleet_inference.model.ranks.messages import Pipes
from lorafleet_inference.model.ranks.wire import Channel

logger = logging.getLogger(__name__)
SILENT_SECONDS = 10.0
"""A host that gives no sign of life for so long is lost."""
PUT_SECONDS = 60.0
"""A host that takes nothing of a file, or says nothing of it, for so long fails the adapter."""
PIECE_BYTES = 1 << 20


class Host:
    """One of the other hosts. `on_gone` is called once, on a thread of its own, when it is lost."""

    def __init__(
        self,
        index: int,
        join: Join,
        control: Channel,
        ranks: range,
        on_gone: Callable[["Host", str], None],
        *,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        """`index`: from 1 on; `ranks`: those it has."""
        self.index, self.ranks = index, ranks
        self.own_address, address = control.address
        self.name = f"{join.name} ({address})"
        self.config = join.config
        self.files: Channel | None = None
        """Where files go; there when all of its connections are."""
        self.pipes: dict[int, Pipes] = {}
        """By rank; there likewise."""
        self._folder = Path(join.folder)
        self._control, self._silent_seconds, self._on_gone = control, silent_seconds, on_gone
        self._changed = Condition()
        self._statuses: dict[int, int] = {}
        self.why_silent = "closed its pipe"
        """Why the end of a rank there may not be told."""
        self._is_gone = self._closing = False
        self._num_lent = 0
        self._lending = threading.Lock()
        control.limit(silent_seconds)
        control.send(Admitted(ranks.start, len(ranks)))
        self._threads = [threading.Thread(target=one, name="host", daemon=True) for one in (self._listen, self._beat)]
        for thread in self._threads:
            thread.start()

    def status_of(self, rank: int, timeout_seconds: float) -> int | None:
        """Wait for the end of a rank's process; return its status, or None when it goes on or the host is gone."""
        with self._changed:
            self._changed.wait_for(lambda: rank in self._statuses or self._is_gone, timeout_seconds)
            return self._statuses.get(rank)

    @contextmanager
    def lend(self, plan: AdapterPlan) -> Iterator[AdapterPlan]:
        """Have an adapter's files on the host, for as long as this is open; yields the plan as it is there.

        Raises:
            AdapterError: they could not be put there; names the host.
        """
        folders: list[int] = []
        with self._lending:
            try:
                yield self._put_all(plan, folders)
            finally:
                self._drop(folders)

    def close(self) -> None:
        """Let it go. Ranks that still run there are ended by it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._control.end()
        for thread in self._threads:
            thread.join()
        self._control.close()
        if self.files is not None:
            self.files.close()

    def _put_all(self, plan: AdapterPlan, folders: list[int]) -> AdapterPlan:
        if plan.merged is not None:
            parts = tuple(self._put_all(part, folders) for part in plan.merged.plans)
            return replace(plan, merged=MergedParts(plan.merged.merge, parts))
        self._num_lent += 1
        folders.append(self._num_lent)
        try:
            for name in plan.files:
                problem = self._put(self._num_lent, plan.directory, name)
                if problem:
                    raise AdapterError(Reason.LOAD_FAILED, f"host {self.name}: {problem}")
        except (OSError, EOFError) as error:
            raise AdapterError(Reason.LOAD_FAILED, f"host {self.name} could not be given {name}: {error}") from error
        return replace(plan, directory=self._folder / str(self._num_lent))

    def _put(self, folder: int, directory: Path, name: str) -> str:
        """Send a file; return why it could not be kept."""
        assert self.files is not None
        with (directory / name).open("rb") as file:
            size = left = file.seek(0, 2)
            file.seek(0)
            try:
                self.files.send(Put(folder, name, size))
                while left:
                    piece = file.read(min(left, PIECE_BYTES))
                    if not piece:
                        raise OSError(f"{name} became shorter while it was read")
                    self.files.send_bytes(piece)
                    left -= len(piece)
                stored: Stored = self.files.recv()
            except OSError:
                self._control.end()  # what is sent next would be taken for the rest of the file
                raise
        return stored.problem

    def _drop(self, folders: list[int]) -> None:
        assert self.files is not None
        try:
            for folder in folders:
                self.files.send(Drop(folder))
        except OSError as error:
            logger.warning("host %s: files of an adapter are left there: %s", self.name, error)

    def _listen(self) -> None:
        words = "its host closed the connection"
        try:
            while True:
                message: object = self._control.recv()
                if isinstance(message, RankEnded):
                    with self._changed:
                        self._statuses[message.rank] = message.status
                        self._changed.notify_all()
        except TimeoutError:
            words = f"its host gave no sign of life for {self._silent_seconds:g} seconds"
        except EOFError:
            pass
        except OSError as error:
            words = f"the connection with its host is lost: {error}"
        with self._changed:
            self._is_gone, self.why_silent = True, words
            self._changed.notify_all()
        if not self._closing:
            self._on_gone(self, words)

    def _beat(self) -> None:
        with self._changed:
            while not (self._is_gone or self._closing):
                try:
                    self._control.send(Alive())
                except OSError:
                    return  # `_listen` hears of it too
                self._changed.wait(ALIVE_SECONDS)
