"""Reads the file of keys, and again when it changes: the kubelet replaces the files of a mounted Secret."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lorafleet_common.errors import ConfigError
from lorafleet_common.keys.guard import Guard
from lorafleet_common.keys.metrics import KeyMetrics
from lorafleet_common.supervise import supervise
from lorafleet_contract.keys import KeyList, KeysError, read_keys

logger = logging.getLogger(__name__)
MAX_FILE_BYTES: Final = 1 << 20
"""No Secret is larger."""
LOOK_SECONDS: Final = 2.0
"""Between two looks at the file. The kubelet takes up to a minute or so to bring a change."""


class KeysFileError(Exception):
    """The file cannot be read."""


class KeysFile:
    """The file of a running process, and the guard that knows its keys."""

    def __init__(self, path: Path, metrics: KeyMetrics, *, option: str) -> None:
        """Read it for the first time.

        Raises:
            ConfigError: it cannot be read or is not one of keys; named by `option`.
        """
        self._path = path
        self._metrics = metrics
        try:
            self._seen: bytes | str = _content(path)
            keys = read_keys(self._seen)
        except (KeysFileError, KeysError) as error:
            raise ConfigError(option, f"{path} {error}") from None
        self.guard = Guard(keys, metrics)
        metrics.stale(is_stale=False)
        _say(keys, f"requests need one of the keys of {path}")

    async def follow(self, *, look_seconds: float = LOOK_SECONDS) -> None:
        """Take the keys of each new content; one that is wrong changes nothing, and is logged once."""
        while True:
            await asyncio.sleep(look_seconds)
            await self.look()

    async def look(self) -> None:
        """Look at the file once."""
        found: bytes | str
        try:
            found = await asyncio.to_thread(_content, self._path)
        except KeysFileError as error:
            found = str(error)
        if found == self._seen:
            return
        self._seen = found
        try:
            if isinstance(found, str):
                raise KeysFileError(found)
            keys = await asyncio.to_thread(read_keys, found)
        except (KeysFileError, KeysError) as error:
            logger.error("%s %s; the keys that were read before stay", self._path, error)
            self._metrics.reloaded(taken=False)
            return
        self.guard.replace(keys)
        self._metrics.reloaded(taken=True)
        _say(keys, f"{self._path} has changed")


def open_guard(path: Path | None, metrics: KeyMetrics, *, option: str) -> tuple[Guard, KeysFile | None]:
    """Return who asks for keys, and the file to follow; without a path nobody is asked.

    Raises:
        ConfigError: the file cannot be read or is not one of keys.
    """
    if path is None:
        return Guard(None, metrics), None
    file = KeysFile(path, metrics, option=option)
    return file.guard, file


@contextmanager
def following(file: KeysFile | None) -> Iterator[None]:
    """Look for new content of the file, where there is one, until the context is left."""
    if file is None:
        yield
        return
    task = asyncio.ensure_future(supervise("the watch over the file of keys", file.follow))
    try:
        yield
    finally:
        task.cancel()


def _say(keys: KeyList, what: str) -> None:
    if keys.keys:
        logger.info("%s: %d", what, len(keys.keys))
    else:
        logger.warning("%s: there is none, so that every request is refused", what)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeysFileError(f"cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise KeysFileError(f"has more than {MAX_FILE_BYTES} bytes")
    return content
