"""Base models in a bucket: a folder of config.json, tokenizer and weights below a prefix."""

import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TypeVar

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.files import FoundFile
from lorafleet_inference.adapters.sources.base import Place
from lorafleet_inference.adapters.sources.credentials import MountedSecret
from lorafleet_inference.adapters.sources.s3 import S3Source
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.model_origin import SKIPPED, TEXT_FILES, WEIGHT_FILES, NotGiven

logger = logging.getLogger(__name__)
T = TypeVar("T")
SCHEME = "s3://"
ROOT = Place("")
RETRY_SECONDS = (1.0, 4.0, 10.0)
"""Pauses between tries of what the server did not give just now."""


class BucketModel:
    """The files below `s3://BUCKET/PREFIX`; their commit is made of names, sizes, entity tags and versions.

    `endpoint` and `region`: None: as the environment says. `credentials`: a folder with `accessKeyId` and `secretAccessKey`;
    where it is not there, the environment's.
    """

    place = "S3"
    ref = "content"
    pinned = None

    def __init__(
        self,
        url: str,
        *,
        endpoint: str | None,
        region: str | None,
        credentials: Path,
        retry_seconds: Sequence[float] = RETRY_SECONDS,
    ) -> None:
        """Raises ValueError: `url` is no `s3://BUCKET/PREFIX`."""
        bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
        prefix = prefix.strip("/")
        if (
            not url.startswith(SCHEME)
            or not bucket
            or any(part in ("", ".", "..") for part in prefix.split("/") if prefix)
        ):
            raise ValueError(f"{url} is not {SCHEME}BUCKET/PREFIX")
        self._name = f"{SCHEME}{bucket}/{prefix}".rstrip("/")
        self._listed: dict[str, dict[str, FoundFile]] = {}
        """By commit."""
        self._retry_seconds = retry_seconds
        secret = MountedSecret(credentials)
        self._source = S3Source(
            "model", bucket, prefix=prefix, endpoint=endpoint, region=region, secret=secret, shown=f"{self._name}/"
        )

    def __str__(self) -> str:
        return self._name

    @property
    def folder(self) -> str:
        """Its folder in a cache."""
        return self._name.replace("://", "--").replace("/", "--")

    def commit(self) -> str:
        """List what is there now."""
        with self._answers():
            listing = self._tried(lambda: self._source.list_below(ROOT, _is_wanted))
        files = {file.name: file for file in listing.files}
        if "config.json" not in files:
            raise NotGiven("there is no config.json", is_lasting=True)
        told = [(name, one.size_bytes, one.tag, one.version_id) for name, one in sorted(files.items())]
        commit = hashlib.sha256(repr(told).encode()).hexdigest()[:40]
        self._listed = {commit: files}
        return commit

    def sizes(self, commit: str) -> dict[str, int]:
        """Return the files with their bytes."""
        if self.commit() != commit:
            raise NotGiven("its content has just changed", is_lasting=False)
        return {name: file.size_bytes for name, file in self._listed[commit].items()}

    def fetch(self, commit: str, name: str, folder: Path) -> None:
        """Bring a file into a folder."""
        path = PurePosixPath(name)
        place, file = (
            Place("" if path.parent == PurePosixPath() else str(path.parent)),
            replace(self._listed[commit][name], name=path.name),
        )
        part = folder / ".cache" / f"{uuid.uuid4().hex}.incomplete"
        part.mkdir(parents=True)
        with self._answers():
            self._tried(lambda: self._source.fetch(place, file, part))
        (folder / name).parent.mkdir(exist_ok=True)
        (part / path.name).replace(folder / name)
        part.rmdir()

    def close(self) -> None:
        """Close idle connections."""
        self._source.close()

    def _tried(self, call: Callable[[], T]) -> T:
        for seconds in self._retry_seconds:
            try:
                return call()
            except AdapterError as error:
                if error.reason is not Reason.SOURCE_UNAVAILABLE:
                    raise
                logger.warning("%s; trying again in %.0f s", error.message, seconds)
                time.sleep(seconds)
        return call()

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except AdapterError as error:
            raise NotGiven(error.message, is_lasting=error.reason is not Reason.SOURCE_UNAVAILABLE) from error


def _is_wanted(name: str) -> bool:
    return any(fnmatch(name, one) for one in (*TEXT_FILES, *WEIGHT_FILES)) and not any(
        fnmatch(name, one) for one in SKIPPED
    )
