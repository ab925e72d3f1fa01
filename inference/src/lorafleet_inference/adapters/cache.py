"""The node cache: one folder a digest, written beside and renamed, so that what is there is whole.

Safe between threads of one process; a second process on the same folder takes a folder of its own. Entries that
somebody holds are never evicted; of the others the least recently used one goes first, over restarts too.
"""

import contextlib
import fcntl
import hashlib
import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

STALE_SECONDS = 24 * 3600.0
"""Broken-off downloads older than this are not gone on with, nor those from before the machine's last start."""


class NoRoom(Exception):
    """What could be evicted is not enough."""


@dataclass(slots=True)
class _Entry:
    num_bytes: int
    num_holders: int = 0


@dataclass(frozen=True, slots=True)
class Download:
    """A folder to download into, and the bytes that are set aside for it."""

    folder: Path
    num_bytes: int


class NodeCache:
    """Adapters on the node's disk. Made by `open`; every path that it gives stays until it is let go."""

    def __init__(self, root: Path, max_bytes: int, lock_file: BinaryIO) -> None:
        self.root = root
        self._max_bytes = max_bytes
        self._lock_file = lock_file
        self._entries: dict[str, _Entry] = {}
        """By hex digest, the least recently used one first."""
        self._leftovers: dict[str, int] = {}
        """Bytes of broken-off downloads, the oldest first."""
        self._reserved_bytes = 0
        self._mutex = threading.Lock()

    @classmethod
    def open(cls, folder: Path, max_bytes: int) -> "NodeCache":
        """Return the cache in a folder, with what an earlier process left there; removes stale and broken leftovers.

        Raises:
            OSError: the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            root = folder / ("adapters" if number == 1 else f"adapters-{number}")
            lock_file = (folder / f".{root.name}.lock").open("wb")
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock_file.close()
                continue
            cache = cls(root, max_bytes, lock_file)
            cache._scan()
            return cache
        raise AssertionError("counting does not end")

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock_file.close()

    @property
    def max_bytes(self) -> int:
        """Its budget."""
        return self._max_bytes

    @property
    def used_bytes(self) -> int:
        """What entries and downloads under way take."""
        with self._mutex:
            return self._used()

    def hold(self, digest: str) -> Path | None:
        """Return the folder of an adapter and keep it until `let_go`; None where it is not there."""
        name = _name(digest)
        with self._mutex:
            entry = self._entries.pop(name, None)
            if entry is None:
                return None
            self._entries[name] = entry  # now the most recently used one
            entry.num_holders += 1
        os.utime(self.root / name)
        return self.root / name

    def let_go(self, digest: str) -> None:
        """Undo one `hold`."""
        with self._mutex:
            entry = self._entries[_name(digest)]
            assert entry.num_holders > 0, "let go more often than held"
            entry.num_holders -= 1

    def begin(self, identity: str, num_bytes: int) -> Download:
        """Set bytes aside for a download, evicting what nobody holds; nothing is evicted in vain.

        What an earlier attempt at the same content left is in the folder. One download of a content at a time.

        Raises:
            NoRoom: it would not be enough.
            OSError: the folder cannot be written.
        """
        name = hashlib.sha256(identity.encode()).hexdigest()[:32]
        with self._mutex:
            own_leftover = self._leftovers.pop(name, 0)
            try:
                trash = self._make_room(num_bytes)
            except NoRoom:
                self._leftovers |= {name: own_leftover} if own_leftover else {}
                raise
            self._reserved_bytes += num_bytes
        _remove(trash)
        folder = self._partials / name
        folder.mkdir(parents=True, exist_ok=True)
        return Download(folder, num_bytes)

    def commit(self, download: Download, digest: str) -> None:
        """Make a complete download an entry.

        Raises:
            OSError: the disk failed; the download is still to be abandoned.
        """
        num_bytes = 0
        for path in download.folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                num_bytes += os.fstat(file.fileno()).st_size
        name, trash = _name(digest), []
        with self._mutex:
            if name in self._entries:
                trash = [self._set_aside(download.folder)]
            else:
                download.folder.rename(self.root / name)
                self._entries[name] = _Entry(num_bytes)
            self._reserved_bytes -= download.num_bytes
        _remove(trash)
        with contextlib.suppress(OSError):  # the files are safe; a lost rename is a download done again
            _sync_folder(self.root)

    def abandon(self, download: Download, *, keep: bool) -> None:
        """End a download that is not complete; `keep` what came, so that another attempt goes on with it."""
        left_bytes, trash = _size_of(download.folder) if keep else 0, []
        with self._mutex:
            self._reserved_bytes -= download.num_bytes
            if keep:
                self._leftovers[download.folder.name] = left_bytes
            else:
                trash = [self._set_aside(download.folder)]
        _remove(trash)

    @property
    def _partials(self) -> Path:
        return self.root / ".partial"

    def _used(self) -> int:
        entries = sum(entry.num_bytes for entry in self._entries.values())
        return entries + sum(self._leftovers.values()) + self._reserved_bytes

    def _make_room(self, num_bytes: int) -> list[Path]:
        """Evict what is needed; return the folders that are to be removed when others may go on."""
        idle = [name for name, entry in self._entries.items() if entry.num_holders == 0]
        evictable = sum(self._entries[name].num_bytes for name in idle) + sum(self._leftovers.values())
        if self._max_bytes - self._used() + evictable < num_bytes:
            raise NoRoom(f"{num_bytes} bytes are needed, and adapters in use leave fewer of {self._max_bytes}")
        trash = []
        for name in list(self._leftovers):
            if self._used() + num_bytes > self._max_bytes:
                del self._leftovers[name]
                trash.append(self._set_aside(self._partials / name))
        for name in idle:
            if self._used() + num_bytes > self._max_bytes:
                del self._entries[name]
                trash.append(self._set_aside(self.root / name))
        return trash

    def _scan(self) -> None:
        self._partials.mkdir(parents=True, exist_ok=True)
        _remove(self.root.glob(".trash-*"))
        for partial in sorted(self._partials.iterdir(), key=_changed):
            if _changed(partial) < max(time.time() - STALE_SECONDS, _boot_time()):
                _remove([self._set_aside(partial)])
            else:
                self._leftovers[partial.name] = _size_of(partial)
        found = [path for path in self.root.iterdir() if not path.name.startswith(".")]
        for path in sorted(found, key=_changed):
            self._entries[path.name] = _Entry(_size_of(path))
        with contextlib.suppress(NoRoom):  # the budget may have become smaller
            _remove(self._make_room(0))

    def _set_aside(self, folder: Path) -> Path:
        """Take a folder away so that nobody ever sees half of it, and return where it waits to be removed."""
        trash = self.root / f".trash-{time.monotonic_ns()}-{folder.name}"
        folder.rename(trash)
        return trash


def _remove(trash: Iterable[Path]) -> None:
    """Remove folders; may take long, so nobody's lock is held meanwhile."""
    for folder in trash:
        shutil.rmtree(folder, ignore_errors=True)


def _name(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _boot_time() -> float:
    """Unix time of the machine's last start: what was written before it and not synced may be torn."""
    lines = Path("/proc/stat").read_text().splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith("btime ")), 0.0)


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
