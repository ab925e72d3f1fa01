"""Base models of a hub in a folder that pods may share: each is downloaded by one of them, once.

    <root>/<organisation>--<name>/<commit>/            whole: the folder appears by one rename
    <root>/<organisation>--<name>/<commit>.partial/    being downloaded; files in it appear by a rename each
    <root>/<organisation>--<name>/<commit>.lease.N     who downloads it
    <root>/<organisation>--<name>/refs/<revision>      the commit that a branch or tag meant last

A commit that is there is used without a request to the hub.
"""

import errno
import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import disable_progress_bars, filter_repo_objects

from lorafleet_common.errors import ConfigError
from lorafleet_inference.file_lease import BEAT_SECONDS, LOST_SECONDS, FileLease

logger = logging.getLogger(__name__)
TEXT_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
WEIGHT_FILES = ("*.safetensors",)
SKIPPED = ("[!1]*/*", "1[!_]*/*", "consolidated*")
"""Subfolders and second copies of the weights in formats that are not loaded; `1_Pooling` says how embeddings are made."""
TIMEOUT_SECONDS = 30.0
NUM_FILES_AT_A_TIME = 8
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LIBRARY_FOLDER = ".cache"
"""What huggingface_hub writes beside the files that it downloads."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one who waits for another's download waits between two looks, and what is said meanwhile."""

    look_seconds: float = 1.0
    say_seconds: float = 30.0
    beat_seconds: float = BEAT_SECONDS
    lost_seconds: float = LOST_SECONDS


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A repository at a commit, and which of its files."""

    repo: str
    commit: str
    patterns: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit[:12]}"


class ModelCache:
    """The models below a folder, of the hub at `endpoint` (None: the public one).

    `holder` names this process to others; the same again after a restart, so that it does not wait for itself.
    """

    def __init__(
        self,
        root: Path,
        *,
        endpoint: str | None = None,
        token: str | None = None,
        holder: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._root = root
        self._endpoint = endpoint
        self._token = token
        self._holder = holder or f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        self._patience = patience or Patience()

    def get(self, repo: str, revision: str | None, *, weights: bool = True) -> Path:
        """Return the folder of a repository at a revision (branch, tag, commit; None: `main`), after a download where it
        is not here, or another process's, for which this one waits. Without `weights`: texts only.

        Raises:
            ConfigError: the hub does not give it, there is no room for it, or the folder cannot be written.
        """
        home = self._root / repo.replace("/", "--")
        with self._errors(repo):
            commit = self._commit_of(home, repo, revision or "main")
            if (home / commit).is_dir():
                logger.info("%s@%s is in the cache %s", repo, commit[:12], self._root)
                return home / commit
            wanted = _Wanted(repo, commit, (*TEXT_FILES, *(WEIGHT_FILES if weights else ())))
            return self._bring(home, commit if weights else f"{commit}.texts", wanted)

    def _commit_of(self, home: Path, repo: str, revision: str) -> str:
        """A branch or tag is asked of the hub; of one that does not answer, what it said last is taken."""
        if _COMMIT.fullmatch(revision):
            return revision
        ref = home / "refs" / quote(revision, safe="")
        try:
            api = HfApi(endpoint=self._endpoint, token=self._token)
            commit: str | None = api.model_info(repo, revision=revision, timeout=TIMEOUT_SECONDS).sha
        except (HfHubHTTPError, httpx.HTTPError, ConnectionError) as error:
            if _refuses(error):
                raise
            commit = ref.read_text() if ref.is_file() else ""
            if not (_COMMIT.fullmatch(commit) and (home / commit).is_dir()):
                raise
            logger.warning("the hub does not say what %s@%s is now: taking what it was, %s", repo, revision, commit)
            return commit
        if commit is None or not _COMMIT.fullmatch(commit):
            raise ValueError(f"it names no commit of {revision}")
        with suppress(OSError):  # a cache that is only read
            ref.parent.mkdir(parents=True, exist_ok=True)
            new = ref.with_name(f"{ref.name}.{uuid.uuid4().hex}")
            new.write_text(commit)
            new.replace(ref)
        return commit

    def _bring(self, home: Path, name: str, wanted: _Wanted) -> Path:
        """Download it, or wait until another has."""
        final, patience = home / name, self._patience
        home.mkdir(parents=True, exist_ok=True)
        lease = FileLease(
            home / f"{name}.lease",
            self._holder,
            beat_seconds=patience.beat_seconds,
            lost_seconds=patience.lost_seconds,
        )
        api = HfApi(endpoint=self._endpoint, token=self._token)
        fill = _Fill(home / f"{name}.partial", wanted, api, _Words(patience.say_seconds))
        words = _Words(patience.say_seconds)
        while not final.is_dir():
            other = lease.take()
            if other is not None:
                if words.are_due():
                    so_far = _so_far(lease.told())
                    logger.info("waiting for %s, which gets %s from the hub%s", other, wanted, so_far)
                time.sleep(patience.look_seconds)
                continue
            with lease.held(fill.tell):
                if not final.is_dir():
                    fill.run(final)
        return final

    @contextmanager
    def _errors(self, repo: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise ConfigError("--model", f"{repo} does not fit: the disk of {self._root} is full") from error
            if error.errno in _NOT_WRITABLE:
                why = f"{repo} is not in the cache {self._root}, which cannot be written ({error.strerror})"
                raise ConfigError("--model", why) from error
            raise _not_given(repo, error) from error
        except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, ValueError, RuntimeError) as error:
            raise _not_given(repo, error) from error


class _Fill:
    """One download into a folder that becomes `final`; what an earlier one left whole is kept."""

    def __init__(self, partial: Path, wanted: _Wanted, api: HfApi, words: "_Words") -> None:
        self._partial = partial
        self._wanted = wanted
        self._api = api
        self._words = words
        self._num_bytes = 0

    def run(self, final: Path) -> None:
        """Download what is missing and put all in its place. Whoever does the same meanwhile does no harm: files are
        written under names of their own and renamed, and so is the folder.
        """
        wanted, partial = self._wanted, self._partial
        disable_progress_bars()
        sizes = self._sizes()
        self._num_bytes = sum(sizes.values())
        partial.mkdir(parents=True, exist_ok=True)
        self._clear()
        self._check_room(sizes)
        logger.info("getting %s from the hub: %s into %s", wanted, _shown(self._num_bytes), partial.parent)
        begun = time.monotonic()
        try:
            self._download(sorted(sizes, key=lambda name: -sizes[name]))
            self._check_whole(sizes)
            shutil.rmtree(partial / _LIBRARY_FOLDER, ignore_errors=True)
            for name in sizes:
                _to_disk(partial / name)
            partial.rename(final)
        except (OSError, RuntimeError):
            if final.is_dir():  # another has done it
                shutil.rmtree(partial, ignore_errors=True)
                return
            self._check_room(sizes)
            raise
        logger.info("got %s in %.0f s", wanted, time.monotonic() - begun)

    def _download(self, names: list[str]) -> None:
        """Several at a time; files that are there are not asked for. The first error ends it, when what runs has ended."""
        with ThreadPoolExecutor(NUM_FILES_AT_A_TIME) as executor:
            futures = [executor.submit(self._download_one, name) for name in names]
            try:
                for future in as_completed(futures):
                    future.result()
            finally:
                executor.shutdown(wait=False, cancel_futures=True)

    def _download_one(self, name: str) -> None:
        if (self._partial / name).is_file():
            return
        wanted = self._wanted
        self._api.hf_hub_download(wanted.repo, name, revision=wanted.commit, local_dir=self._partial)

    def tell(self) -> dict[str, Any]:
        """Return how far it is, in bytes, and log it now and then."""
        told = {"done_bytes": _size_of(self._partial), "all_bytes": self._num_bytes}
        if self._words.are_due():
            logger.info("getting %s from the hub%s", self._wanted, _so_far(told))
        return told

    def _sizes(self) -> dict[str, int]:
        """Wanted files with their bytes, 0 where the hub does not say."""
        wanted = self._wanted
        info = self._api.model_info(wanted.repo, revision=wanted.commit, files_metadata=True, timeout=TIMEOUT_SECONDS)
        files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        names = filter_repo_objects(files, allow_patterns=list(wanted.patterns), ignore_patterns=list(SKIPPED))
        return {name: files[name] for name in names}

    def _clear(self) -> None:
        """Remove what a download that was killed left half, and its locks."""
        for path in (self._partial / _LIBRARY_FOLDER).rglob("*"):
            if path.suffix in (".incomplete", ".lock"):
                path.unlink(missing_ok=True)

    def _check_room(self, sizes: dict[str, int]) -> None:
        missing = sum(size for name, size in sizes.items() if not (self._partial / name).is_file())
        free = shutil.disk_usage(self._partial).free
        if missing > free:
            where = self._partial.parent.parent
            why = f"{self._wanted.repo} does not fit: it needs {_shown(missing)} more, and {where} has {_shown(free)} free"
            raise ConfigError("--model", why)

    def _check_whole(self, sizes: dict[str, int]) -> None:
        """A file of an earlier download is not asked for again, so it is looked at here."""
        for name, size in sizes.items():
            path = self._partial / name
            if not path.is_file() or (size and path.stat().st_size != size):
                path.unlink(missing_ok=True)
                raise ValueError(f"{name} did not come whole")


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


def _refuses(error: Exception) -> bool:
    """Whether the hub has answered, and asking again changes nothing."""
    if not isinstance(error, HfHubHTTPError):
        return False
    status: int = error.response.status_code
    return status < httpx.codes.INTERNAL_SERVER_ERROR and status != httpx.codes.TOO_MANY_REQUESTS


def _not_given(repo: str, error: Exception) -> ConfigError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ConfigError("--model", f"{repo} is no folder, and the hub did not give it: {first_line}")


def _so_far(told: dict[str, Any]) -> str:
    done, of = told.get("done_bytes"), told.get("all_bytes")
    return f": {_shown(done)} of {_shown(of)}" if isinstance(done, int) and isinstance(of, int) and of else ""


def _shown(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _size_of(folder: Path) -> int:
    """Bytes of the files below a folder that others write meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size if path.is_file() else 0
    return total


def _to_disk(path: Path) -> None:
    """The folder's name must not outlive its content when a node loses power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
