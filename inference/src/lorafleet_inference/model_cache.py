"""Base models in a folder that pods may share: each is downloaded by one of them, once.

    <root>/<organisation>--<name>/<commit>/            whole: the folder appears by one rename
    <root>/<organisation>--<name>/<commit>.partial/    being downloaded; files in it appear by a rename each
    <root>/<organisation>--<name>/<commit>.lease.N     who downloads it
    <root>/<organisation>--<name>/refs/<revision>      the commit that a branch or tag meant last

A commit that is there is used without a request. A model of a bucket lies in `s3--<bucket>--<prefix>`; its commit is made of what
the bucket lists.
"""

import errno
import logging
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from huggingface_hub.utils import filter_repo_objects

from lorafleet_common.errors import ConfigError
from lorafleet_inference.file_lease import BEAT_SECONDS, LOST_SECONDS, FileLease
from lorafleet_inference.model_origin import SKIPPED, TEXT_FILES, WEIGHT_FILES, NotGiven, Origin

logger = logging.getLogger(__name__)
NUM_FILES_AT_A_TIME = 8
_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNFINISHED = ".cache"
"""Where origins write files before they have come whole."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one who downloads, or waits for another's download, waits between two looks, and what is said meanwhile."""

    look_seconds: float = 1.0
    say_seconds: float = 30.0
    beat_seconds: float = BEAT_SECONDS
    lost_seconds: float = LOST_SECONDS


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A model at a commit, and which of its files."""

    model: Origin
    commit: str
    patterns: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.model}@{self.commit[:12]}"


def nobody(_: int) -> None:
    """Tell nobody how far a download is."""


class ModelCache:
    """The models below a folder.

    `holder` names this process to others; the same again after a restart, so that it does not wait for itself.
    """

    def __init__(self, root: Path, *, holder: str | None = None, patience: Patience | None = None) -> None:
        self._root = root
        self._holder = holder or f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        self._patience = patience or Patience()

    def get(self, model: Origin, *, weights: bool = True, tell: Callable[[int], None] = nobody) -> Path:
        """Return the folder of a model, after a download where it is not here, or another process's, for which this one
        waits. Without `weights`: texts only.

        `tell` is called with the per cent of its bytes that are here, about once a second while it is downloaded, by whomever;
        what it raises ends the download, and what has come of it is for the next one.

        Raises:
            ConfigError: its origin does not give it, there is no room for it, or the folder cannot be written.
        """
        home = self._root / model.folder
        with closing(model), self._errors(model):
            commit = model.pinned or self._asked_commit(home, model)
            if (home / commit).is_dir():
                logger.info("%s@%s is in the cache %s", model, commit[:12], self._root)
                return home / commit
            wanted = _Wanted(model, commit, (*TEXT_FILES, *(WEIGHT_FILES if weights else ())))
            return self._bring(home, commit if weights else f"{commit}.texts", wanted, tell)

    def _asked_commit(self, home: Path, model: Origin) -> str:
        """Where the origin does not answer, what it said last is taken."""
        ref = home / "refs" / model.ref
        try:
            commit = model.commit()
        except NotGiven as error:
            if error.is_lasting:
                raise
            commit = ref.read_text() if ref.is_file() else ""
            if not (_COMMIT.fullmatch(commit) and (home / commit).is_dir()):
                raise
            logger.warning("%s does not say what %s is now: taking what it was, %s", model.place, model, commit)
            return commit
        with suppress(OSError):  # a cache that is only read
            ref.parent.mkdir(parents=True, exist_ok=True)
            new = ref.with_name(f"{ref.name}.{uuid.uuid4().hex}")
            new.write_text(commit)
            new.replace(ref)
        return commit

    def _bring(self, home: Path, name: str, wanted: _Wanted, tell: Callable[[int], None]) -> Path:
        """Download it, or wait until another has."""
        final, patience = home / name, self._patience
        home.mkdir(parents=True, exist_ok=True)
        lease = FileLease(
            home / f"{name}.lease",
            self._holder,
            beat_seconds=patience.beat_seconds,
            lost_seconds=patience.lost_seconds,
        )
        fill = _Fill(home / f"{name}.partial", wanted, patience, tell)
        words = _Words(patience.say_seconds)
        while not final.is_dir():
            other = lease.take()
            if other is not None:
                told = lease.told()
                if words.are_due():
                    logger.info(
                        "waiting for %s, which gets %s from %s%s", other, wanted, wanted.model.place, _so_far(told)
                    )
                if (percent := _percent(told)) is not None:
                    tell(percent)
                time.sleep(patience.look_seconds)
                continue
            with lease.held(fill.told):
                if not final.is_dir():
                    fill.run(final)
        return final

    @contextmanager
    def _errors(self, model: Origin) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise ConfigError("--model", f"{model} does not fit: the disk of {self._root} is full") from error
            if error.errno in _NOT_WRITABLE:
                why = f"{model} is not in the cache {self._root}, which cannot be written ({error.strerror})"
                raise ConfigError("--model", why) from error
            raise ConfigError("--model", f"{model} cannot be kept in {self._root}: {error}") from error
        except NotGiven as error:
            raise ConfigError("--model", f"{model} is no folder, and {model.place} did not give it: {error}") from error


class _Fill:
    """One download into a folder that becomes `final`; what an earlier one left whole is kept."""

    def __init__(self, partial: Path, wanted: _Wanted, patience: Patience, tell: Callable[[int], None]) -> None:
        self._partial = partial
        self._wanted = wanted
        self._look_seconds = patience.look_seconds
        self._words = _Words(patience.say_seconds)
        self._looks = _Words(patience.look_seconds)
        self._tell = tell
        self._num_bytes = 0

    def run(self, final: Path) -> None:
        """Download what is missing and put all in its place. Whoever does the same meanwhile does no harm: files are
        written under names of their own and renamed, and so is the folder.
        """
        wanted, partial = self._wanted, self._partial
        sizes = self._sizes()
        self._num_bytes = sum(sizes.values())
        partial.mkdir(parents=True, exist_ok=True)
        self._clear()
        self._check_room(sizes)
        size, place = _shown(self._num_bytes), wanted.model.place
        logger.info("getting %s from %s: %s into %s", wanted, place, size, partial.parent)
        begun = time.monotonic()
        try:
            self._download(sorted(sizes, key=lambda name: -sizes[name]))
            self._check_whole(sizes)
            shutil.rmtree(partial / _UNFINISHED, ignore_errors=True)
            for name in sizes:
                _to_disk(partial / name)
            partial.rename(final)
        except (OSError, NotGiven):
            if final.is_dir():  # another has done it
                shutil.rmtree(partial, ignore_errors=True)
                return
            self._check_room(sizes)
            raise
        logger.info("got %s in %.0f s", wanted, time.monotonic() - begun)

    def _download(self, names: list[str]) -> None:
        """Several at a time; files that are there are not asked for. The first error ends it, when what runs has ended."""
        waiting: SimpleQueue[str] = SimpleQueue()
        ended: SimpleQueue[Exception | None] = SimpleQueue()
        is_over = threading.Event()
        for name in names:
            waiting.put(name)

        def work() -> None:
            with suppress(Empty):
                while not is_over.is_set():
                    ended.put(self._error_of(waiting.get_nowait()))

        # a process that is told to end does not wait for files that are on their way
        threads = [threading.Thread(target=work, name="download", daemon=True) for _ in names[:NUM_FILES_AT_A_TIME]]
        for thread in threads:
            thread.start()
        try:
            for _ in names:
                if (error := self._next(ended)) is not None:
                    raise error
        except (OSError, NotGiven):
            is_over.set()
            for thread in threads:
                thread.join()
            raise
        finally:
            is_over.set()

    def _next(self, ended: "SimpleQueue[Exception | None]") -> Exception | None:
        """Wait for the end of a file, telling how far all are."""
        while True:
            self._tell_percent()
            with suppress(Empty):
                return ended.get(timeout=self._look_seconds)

    def _error_of(self, name: str) -> Exception | None:
        try:
            self._download_one(name)
        except Exception as error:  # noqa: BLE001  it is raised where the others are waited for
            return error
        return None

    def _download_one(self, name: str) -> None:
        if (self._partial / name).is_file():
            return
        self._wanted.model.fetch(self._wanted.commit, name, self._partial)

    def told(self) -> dict[str, Any]:
        """Return how far it is, in bytes, and log it now and then."""
        told = self._so_far()
        if self._words.are_due():
            logger.info("getting %s from %s%s", self._wanted, self._wanted.model.place, _so_far(told))
        return told

    def _so_far(self) -> dict[str, Any]:
        return {"done_bytes": _size_of(self._partial), "all_bytes": self._num_bytes}

    def _tell_percent(self) -> None:
        """Tell it where nothing was told for a look's time."""
        if self._looks.are_due() and (percent := _percent(self._so_far())) is not None:
            self._tell(percent)

    def _sizes(self) -> dict[str, int]:
        """Wanted files with their bytes, 0 where the origin does not say."""
        wanted = self._wanted
        files = wanted.model.sizes(wanted.commit)
        names = filter_repo_objects(files, allow_patterns=list(wanted.patterns), ignore_patterns=list(SKIPPED))
        return {name: files[name] for name in names}

    def _clear(self) -> None:
        """Remove what a download that was killed left half, and its locks."""
        for path in list((self._partial / _UNFINISHED).rglob("*")):
            if path.suffix not in (".incomplete", ".lock"):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _check_room(self, sizes: dict[str, int]) -> None:
        missing = sum(size for name, size in sizes.items() if not (self._partial / name).is_file())
        free = shutil.disk_usage(self._partial).free
        if missing > free:
            where = self._partial.parent.parent
            why = f"{self._wanted.model} does not fit: it needs {_shown(missing)} more, and {where} has {_shown(free)} free"
            raise ConfigError("--model", why)

    def _check_whole(self, sizes: dict[str, int]) -> None:
        """A file of an earlier download is not asked for again, so it is looked at here."""
        for name, size in sizes.items():
            path = self._partial / name
            if not path.is_file() or (size and path.stat().st_size != size):
                path.unlink(missing_ok=True)
                raise NotGiven(f"{name} did not come whole", is_lasting=False)


class _Words:
    """Of something that lasts: to be said at once, and again when some seconds have passed."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = 0.0

    def are_due(self) -> bool:
        """Whether to say it now."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + self._seconds
        return True


def _so_far(told: dict[str, Any]) -> str:
    done, of = told.get("done_bytes"), told.get("all_bytes")
    return f": {_shown(done)} of {_shown(of)}" if isinstance(done, int) and isinstance(of, int) and of else ""


def _percent(told: dict[str, Any]) -> int | None:
    """What is told, in per cent; None where it is not known of how much. A lease is written by others, of later versions too."""
    done, of = told.get("done_bytes"), told.get("all_bytes")
    return min(100, max(0, 100 * done // of)) if isinstance(done, int) and isinstance(of, int) and of > 0 else None


def _shown(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _size_of(folder: Path) -> int:
    """Bytes of the files below a folder that others write meanwhile, and take parts of away."""
    total = 0
    for parent, _, names in os.walk(folder):  # passes over what is gone, which pathlib does not
        for name in names:
            with suppress(OSError):
                total += Path(parent, name).lstat().st_size
    return total


def _to_disk(path: Path) -> None:
    """The folder's name must not outlive its content when a node loses power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
