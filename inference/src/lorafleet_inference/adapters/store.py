"""Brings adapters from their sources to the node's disk: in threads, few at a time, again when a failure is retryable."""

import asyncio
import contextlib
import errno
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from lorafleet_contract.reasons import Reason
from lorafleet_contract.sources import AdapterFacts, SourceFile
from lorafleet_inference.adapters.cache import Download, NodeCache, NoRoom
from lorafleet_inference.adapters.catalogue import Artifact
from lorafleet_inference.adapters.digest import digest_of_files, hash_file
from lorafleet_inference.adapters.files import CONFIG, FoundFile, files_of_adapter
from lorafleet_inference.adapters.peft_config import read_config
from lorafleet_inference.adapters.sources.base import Listing, Place, Source
from lorafleet_inference.adapters.sources.registry import Refusing
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.metrics import ADAPTER_FETCH_FAILURES, ADAPTER_FETCH_SECONDS, ADAPTER_FETCHED_BYTES

logger = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
MAX_PARALLEL = 4
"""Adapters that are downloaded at the same time."""
MAX_ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.5
MAX_REMEMBERED = 4096
Inspect = Callable[[Path], AdapterFacts]
"""Judges a complete adapter; raises AdapterError."""


class AdapterStore:
    """The node cache and the ways into it. `free_one` lets one idle adapter go from the cache, False if there is none."""

    def __init__(
        self,
        cache: NodeCache,
        inspect: Inspect,
        free_one: Callable[[], Awaitable[bool]],
        *,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        self.cache = cache
        self._inspect = inspect
        self._free_one = free_one
        self._first_pause_seconds = first_pause_seconds
        self._threads = ThreadPoolExecutor(2 * MAX_PARALLEL, thread_name_prefix="adapter-io")
        self._cleaner = ThreadPoolExecutor(1, thread_name_prefix="adapter-cleaner")
        self._slots = asyncio.Semaphore(MAX_PARALLEL)
        self._fetches: dict[str, asyncio.Task[Artifact]] = {}
        """Downloads under way, by what is downloaded; whoever wants the same one waits for it."""
        self._resolved: dict[str, Artifact] = {}
        """What listings turned out to be."""

    async def close(self) -> None:
        """End what is under way as soon as its threads allow."""
        tasks = list(self._fetches.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._cleaner.shutdown(wait=False)
        self.cache.close()

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call that blocks in one of the store's threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: call(*args, **kwargs))

    async def resolve(
        self, source: Source, place: Place, expected_digest: str | None = None, *, scope: str = ""
    ) -> Artifact:
        """Pin a place to content: download, hash and judge it.

        `scope`: whose right opens the source, where it is not the declared one's; what others had downloaded is no answer.

        Raises:
            AdapterError: the source did not give it, or it is not taken.
        """
        source.check(place)
        listing = await self._again(lambda: self.run(source.list_files, place))
        files = files_of_adapter(listing.files, where=source.show(place), max_bytes=self.cache.max_bytes)
        listing = replace(listing, files=files)
        identity = f"{scope}{source.show(listing.place)} {listing!r}"
        artifact = self._resolved.get(identity)
        if artifact is None:
            artifact = await self._shared(identity, lambda key: self._fetch_new(key, source, listing))
            if len(self._resolved) >= MAX_REMEMBERED:
                self._resolved.clear()
            self._resolved[identity] = without_source(artifact)
        artifact = replace(artifact, source=source)
        if expected_digest not in (None, artifact.digest):
            raise AdapterError(
                Reason.DIGEST_MISMATCH,
                f"{source.show(place)} has {artifact.digest}, and {expected_digest} is expected",
            )
        return artifact

    async def ensure(self, artifact: Artifact, *, may_evict: bool) -> Path:
        """Return the folder of an adapter's content, downloaded if need be; held until `cache.let_go`.

        `may_evict`: idle adapters of the catalogue may leave the disk for it.

        Raises:
            AdapterError: the source did not give it, gave something else, or the disk has no room.
        """
        artifact.source.check(artifact.place)
        while (folder := self.cache.hold(artifact.digest)) is None:
            await self._shared(artifact.digest, lambda key: self._fetch_pinned(key, artifact, may_evict=may_evict))
        return folder

    def has(self, digest: str) -> bool:
        """Whether the content is on the disk."""
        folder = self.cache.hold(digest)
        if folder is not None:
            self.cache.let_go(digest)
        return folder is not None

    async def _shared(self, key: str, fetch: Callable[[str], Coroutine[None, None, Artifact]]) -> Artifact:
        """Join the download of this key, or begin it; it goes on when whoever asked for it goes away."""
        task = self._fetches.get(key)
        if task is None:
            task = self._fetches[key] = asyncio.create_task(fetch(key))
            task.add_done_callback(lambda ended: self._ended(key, ended))
        return await asyncio.shield(task)

    def _ended(self, key: str, task: asyncio.Task[Artifact]) -> None:
        del self._fetches[key]
        if not task.cancelled():
            task.exception()  # known to whoever still waits

    async def _fetch_new(self, identity: str, source: Source, listing: Listing) -> Artifact:
        async with self._slots, self._download(identity, source, listing.files, may_evict=True) as download:
            hashed = [await self._fetch_file(source, listing.place, file, download) for file in _small_first(listing)]
            facts = await self.run(self._inspect, download.folder)
            files = tuple(sorted(hashed, key=lambda file: file.path))
            digest = digest_of_files(files)
            await self.run(self.cache.commit, download, digest)
        return Artifact(digest, files, facts, source, listing.place)

    async def _fetch_pinned(self, identity: str, artifact: Artifact, *, may_evict: bool) -> Artifact:
        files = tuple(
            FoundFile(file.path, file.size_bytes, file.version_id, sha256=file.sha256)
            for file in sorted(artifact.files, key=lambda file: file.path)
        )
        where = artifact.source.show(artifact.place)
        if files_of_adapter(files, where=where, max_bytes=self.cache.max_bytes) != files:
            raise AdapterError(Reason.ARTIFACT_INVALID, f"{where} was resolved to files that are no adapter's")
        if digest_of_files(artifact.files) != artifact.digest:
            raise AdapterError(Reason.DIGEST_MISMATCH, f"{where} was resolved to files of another digest")
        listing = Listing(artifact.place, files)
        async with self._slots, self._download(identity, artifact.source, files, may_evict=may_evict) as download:
            for file in _small_first(listing):
                await self._fetch_file(artifact.source, artifact.place, file, download)
            await self.run(self._inspect, download.folder)
            await self.run(self.cache.commit, download, artifact.digest)
        return artifact

    @contextlib.asynccontextmanager
    async def _download(
        self, identity: str, source: Source, files: tuple[FoundFile, ...], *, may_evict: bool
    ) -> AsyncIterator[Download]:
        """Room on the disk for as long as the files come; the body commits."""
        num_bytes, began = sum(file.size_bytes for file in files), time.perf_counter()
        try:
            download = await self._begin(identity, num_bytes, may_evict=may_evict)
            try:
                yield download
            except BaseException as error:
                await self._abandon(download, keep=_goes_on(error))
                if isinstance(error, OSError):
                    raise _disk_failed(error) from error
                raise
        except AdapterError as error:
            ADAPTER_FETCH_FAILURES.of(source.name, error.reason.value).inc()
            raise
        ADAPTER_FETCH_SECONDS.of(source.name).observe(time.perf_counter() - began)
        ADAPTER_FETCHED_BYTES.of(source.name).inc(num_bytes)

    async def _abandon(self, download: Download, *, keep: bool) -> None:
        """End a download in the thread that waits for no source; it goes on when whoever waits is cancelled."""
        loop = asyncio.get_running_loop()
        await asyncio.shield(loop.run_in_executor(self._cleaner, partial(self.cache.abandon, download, keep=keep)))

    async def _begin(self, identity: str, num_bytes: int, *, may_evict: bool) -> Download:
        while True:
            try:
                return await self.run(self.cache.begin, identity, num_bytes)
            except NoRoom as error:
                if not (may_evict and num_bytes <= self.cache.max_bytes and await self._free_one()):
                    raise AdapterError(Reason.DISK_FULL, f"the disk cache has no room: {error}") from error
            except OSError as error:
                raise _disk_failed(error) from error

    async def _fetch_file(self, source: Source, place: Place, file: FoundFile, download: Download) -> SourceFile:
        async def fetch() -> SourceFile:
            await self.run(source.fetch, place, file, download.folder)
            hashed = await self.run(hash_file, download.folder, file.name, version_id=file.version_id)
            if hashed.size_bytes != file.size_bytes:
                raise AdapterError(
                    Reason.SOURCE_UNAVAILABLE,
                    f"{source.show(place)} gave {hashed.size_bytes} of the {file.size_bytes} bytes of {file.name}",
                )
            return hashed

        hashed = await self._again(fetch)
        if file.sha256 not in (None, hashed.sha256):
            raise AdapterError(
                Reason.DIGEST_MISMATCH, f"{file.name} of {source.show(place)} is not what was resolved: it has changed"
            )
        if file.name == CONFIG:  # what it says may make the weights unnecessary
            await self.run(read_config, download.folder)
        return hashed

    async def _again(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try again after a pause that grows, as long as the source only does not answer."""
        for number in range(1, MAX_ATTEMPTS):
            try:
                return await attempt()
            except AdapterError as error:
                if error.reason is not Reason.SOURCE_UNAVAILABLE:
                    raise
                logger.info("again soon: %s", error.message)
            await asyncio.sleep(self._first_pause_seconds * 2 ** (number - 1) * random.uniform(0.5, 1.5))  # noqa: S311  jitter
        return await attempt()


def without_source(artifact: Artifact) -> Artifact:
    """Return what an artifact is, to be remembered without whoever's right to its source."""
    message = "what is remembered of a source is not how to read it"
    return replace(artifact, source=Refusing(artifact.source.name, Reason.SOURCE_NOT_ALLOWED, message))


def _small_first(listing: Listing) -> list[FoundFile]:
    return sorted(listing.files, key=lambda file: (file.name != CONFIG, file.size_bytes))


def _goes_on(error: BaseException) -> bool:
    """Whether another attempt may go on from what came before this ended it."""
    return isinstance(error, asyncio.CancelledError) or (
        isinstance(error, AdapterError) and error.reason is Reason.SOURCE_UNAVAILABLE
    )


def _disk_failed(error: OSError) -> AdapterError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return AdapterError(Reason.DISK_FULL, "the disk of the cache is full")
    return AdapterError(Reason.LOAD_FAILED, f"the disk of the cache failed: {error.strerror or error}")
