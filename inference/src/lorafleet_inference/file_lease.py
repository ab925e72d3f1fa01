"""One of several processes does a piece of work, also where locks of the file system do not reach other nodes.

Who has the lease writes its file again and again; a file that stands still is of somebody who is gone. It saves work and
nothing else: two may believe that they have it, after a node that slept for a minute, and what they do must bear that.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
BEAT_SECONDS = 5.0
LOST_SECONDS = 60.0
"""A file that has not changed for so long, by the clock of who looks at it, is of nobody."""
ANOTHER = "another process"


class FileLease:
    """A lease at `<path>.<number>`, in a folder that exists; the highest number is the one that holds, and whoever makes a
    file of a number has it. `holder` is the same name again after a restart of the same container.
    """

    def __init__(
        self, path: Path, holder: str, *, beat_seconds: float = BEAT_SECONDS, lost_seconds: float = LOST_SECONDS
    ) -> None:
        self._path = path
        self._holder = holder
        self._beat_seconds = beat_seconds
        self._lost_seconds = lost_seconds
        self._own = path
        self._seen = b""
        self._seen_at = time.monotonic()
        self._beats = 0

    def take(self) -> str | None:
        """Take it: None; or return who has it. Whoever waits calls this again and again.

        Raises:
            OSError: no file can be written here.
        """
        number, said = self._latest()
        holder = _holder_of(said)
        if number and holder == self._holder:  # of this container's life before
            self._own = self._file(number)
            return None
        if said != self._seen:
            self._seen, self._seen_at = said, time.monotonic()
        if number and time.monotonic() - self._seen_at < self._lost_seconds:
            return holder
        try:
            with self._file(number + 1).open("xb") as file:
                file.write(self._said({}))
        except FileExistsError:
            return ANOTHER
        self._own = self._file(number + 1)
        if number:
            self._file(number).unlink(missing_ok=True)
            logger.warning("%s has not been heard for %.0f s: going on in its place", holder, self._lost_seconds)
        return None

    @contextmanager
    def held(self, tell: Callable[[], dict[str, Any]]) -> Iterator[None]:
        """Keep a lease that was taken until the end of the block; `tell` is called with each beat, and what it returns is
        for those who wait (`told`).
        """
        is_over = threading.Event()
        thread = threading.Thread(target=self._beat, args=(is_over, tell), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
            with suppress(OSError):
                self._own.unlink(missing_ok=True)

    def told(self) -> dict[str, Any]:
        """Return what the holder tells; empty where it tells nothing."""
        return _parsed(self._latest()[1])

    def _beat(self, is_over: threading.Event, tell: Callable[[], dict[str, Any]]) -> None:
        while not is_over.wait(self._beat_seconds):
            told = tell()
            try:
                with self._own.open("r+b") as file:
                    file.write(self._said(told))
                    file.truncate()
            except FileNotFoundError:
                logger.warning("%s is no longer the lease of %s: the work is done twice", self._own, self._holder)
                return
            except OSError as error:  # of a file system that fails for a while, or is full
                logger.warning("%s cannot be written: %s", self._own, error.strerror)

    def _said(self, told: dict[str, Any]) -> bytes:
        self._beats += 1
        return json.dumps({**told, "holder": self._holder, "beat": self._beats}).encode()

    def _file(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _latest(self) -> tuple[int, bytes]:
        """The highest number, 0 where there is none, and what its holder says."""
        names = (
            path.name.removeprefix(f"{self._path.name}.") for path in self._path.parent.glob(f"{self._path.name}.*")
        )
        number = max((int(name) for name in names if name.isdecimal()), default=0)
        try:
            return number, self._file(number).read_bytes() if number else b""
        except FileNotFoundError:  # given back meanwhile, or another has just taken it
            return number, b""


def _parsed(said: bytes) -> dict[str, Any]:
    try:
        document = json.loads(said)
    except ValueError:  # being written
        return {}
    return document if isinstance(document, dict) else {}


def _holder_of(said: bytes) -> str:
    return str(_parsed(said).get("holder", ANOTHER))
