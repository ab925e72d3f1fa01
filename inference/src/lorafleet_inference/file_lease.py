"""One of several processes does a piece of work, also where locks of the file system do not reach other nodes.

Who has the lease writes its file again and again; a file that stands still is of somebody who is gone. It saves work and
nothing else: two may believe that they have it, after a node that slept for a minute, and what they do must bear that.
"""

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
BEAT_SECONDS = 5.0
LOST_SECONDS = 60.0
"""A file that has not changed for so long, by the clock of who looks at it, is of nobody."""


class FileLease:
    """A lease at a path whose folder exists; `holder` is the same name again after a restart of the same container."""

    def __init__(
        self, path: Path, holder: str, *, beat_seconds: float = BEAT_SECONDS, lost_seconds: float = LOST_SECONDS
    ) -> None:
        self._path = path
        self._holder = holder
        self._beat_seconds = beat_seconds
        self._lost_seconds = lost_seconds
        self._seen = b""
        self._seen_at = time.monotonic()
        self._beats = 0

    def take(self) -> str | None:
        """Take it: None; or return who has it. Whoever waits calls this again and again.

        Raises:
            OSError: no file can be written here.
        """
        while True:
            try:
                with self._path.open("xb") as file:
                    file.write(self._said({}))
            except FileExistsError:
                said = self._read()
            else:
                return None
            if said is None:
                continue
            holder = _holder_of(said)
            if holder == self._holder:
                return None  # of this container's life before
            if said != self._seen:
                self._seen, self._seen_at = said, time.monotonic()
            if time.monotonic() - self._seen_at < self._lost_seconds:
                return holder
            self._put_aside(said)
            logger.warning("%s has not been heard for %.0f s: going on in its place", holder, self._lost_seconds)

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
            if self._is_own():
                with suppress(OSError):
                    self._path.unlink(missing_ok=True)

    def told(self) -> dict[str, Any]:
        """Return what the holder tells; empty where it tells nothing."""
        return _parsed(self._read() or b"")

    def _beat(self, is_over: threading.Event, tell: Callable[[], dict[str, Any]]) -> None:
        while not is_over.wait(self._beat_seconds):
            told = tell()
            # a file system that fails for a while, or is full, takes the next beat perhaps
            with suppress(OSError):
                said = self._read()
                if said is not None and _holder_of(said) != self._holder:
                    logger.warning("the lease %s is no longer of %s: the work is done twice", self._path, self._holder)
                    return
                with self._path.open("xb" if said is None else "r+b") as file:
                    file.write(self._said(told))
                    file.truncate()

    def _said(self, told: dict[str, Any]) -> bytes:
        self._beats += 1
        return json.dumps({**told, "holder": self._holder, "beat": self._beats}).encode()

    def _is_own(self) -> bool:
        return _holder_of(self._read() or b"") == self._holder

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def _put_aside(self, said: bytes) -> None:
        """Remove the file of one who is gone. Of several who try one does, and whoever comes after it may find a new one."""
        aside = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}")
        with suppress(FileNotFoundError):
            self._path.rename(aside)
            if aside.read_bytes() != said:
                with suppress(OSError):
                    os.link(aside, self._path)
            aside.unlink()


def _parsed(said: bytes) -> dict[str, Any]:
    try:
        document = json.loads(said)
    except ValueError:  # being written
        return {}
    return document if isinstance(document, dict) else {}


def _holder_of(said: bytes) -> str:
    return str(_parsed(said).get("holder", "another process"))
