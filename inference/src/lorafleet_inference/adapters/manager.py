"""The adapters of one pod: who may use which revision, what is known, what is wanted."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lorafleet_common.errors import ConfigError
from lorafleet_contract.admin import (
    CatalogueEntry,
    CatalogueWrite,
    LocalFailure,
    ObservedAdapter,
    Owner,
    Residency,
)
from lorafleet_contract.reasons import Reason
from lorafleet_contract.sources import AdapterFacts, Digest, ResolvedSource, SourceRef
from lorafleet_inference.adapters.ad_hoc import AdHoc
from lorafleet_inference.adapters.bringer import AdapterEngine, Bringer
from lorafleet_inference.adapters.cache import NodeCache
from lorafleet_inference.adapters.catalogue import Artifact, Catalogue, Entry
from lorafleet_inference.adapters.changes import Generation
from lorafleet_inference.adapters.extra_tensors import pages_of_files
from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.adapters.lease import Lease
from lorafleet_inference.adapters.local import LocalAdapters
from lorafleet_inference.adapters.merges import MergeEngine, Merges
from lorafleet_inference.adapters.row_layout import RowLayout
from lorafleet_inference.adapters.shown import Shown
from lorafleet_inference.adapters.sources.registry import Refusing, Sources
from lorafleet_inference.adapters.store import AdapterStore
from lorafleet_inference.adapters.tracked import Phase, Tracked
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.config import ServerConfig
from lorafleet_inference.engine.messages import EngineReady
from lorafleet_inference.errors import (
    AdapterFailed,
    AdapterLoading,
    EngineNotReady,
    ModelNotFound,
    RequestError,
    RevisionNotFound,
)

__all__ = ["AdapterManager", "Lease", "ListedModel"]
logger = logging.getLogger(__name__)
RETRY_SECONDS = 1.0
Judge = Callable[[Path, int], object]
"""Looks at an adapter's folder and the rows of its embedding; raises AdapterError; may block."""


@dataclass(frozen=True, slots=True)
class ListedModel:
    """What /v1/models says of the base or of an adapter."""

    id: str
    created: float
    root: str
    parent: str | None
    revision: str | None
    invocation_tokens: list[int] | None = None


class PodEngine(AdapterEngine, MergeEngine, Protocol):
    """The engine, seen from here."""


class AdapterManager:
    """Owns catalogue, cache and leases of a pod. Made before the engine is ready; `start` when it is."""

    def __init__(self, engine: PodEngine, config: ServerConfig, *, boot_id: str, judge: Judge | None = None) -> None:
        """Open the node cache; `judge` looks at what the engine does not need of an adapter.

        Raises:
            ConfigError: its folder cannot be written, a declared source is impossible, or an adapter is given twice.
        """
        self.boot_id = boot_id
        self._judge = judge
        self.changes = Generation()
        """Grows with everything that the admin state or the routes show."""
        self.catalogue = Catalogue()
        self._engine = engine
        self._config = config
        self._created = time.time()
        names = [name for name, _ in config.adapters]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError("--adapter", f"{name} is given twice")
        self._sources = Sources(
            config.adapter_sources, volumes_dir=config.volumes_dir, credentials_dir=config.credentials_dir
        )
        try:
            self.cache = NodeCache.open(config.cache_dir, config.disk_cache_bytes)
        except OSError as error:
            raise ConfigError("--cache-dir", f"{config.cache_dir} cannot be used: {error.strerror}") from error
        self._store = AdapterStore(self.cache, self._facts, self._free_one)
        self.merges = Merges(
            engine, self.cache, max_merges=config.max_merged_adapters, can_load=config.engine.load_on_demand
        )
        """Of adapters, by their content."""
        self._bringer = Bringer(
            engine,
            self._store,
            self._inspect,
            self.changes,
            load_on_demand=config.engine.load_on_demand,
            on_let_go=self.merges.content_gone,
        )
        self.shown = Shown(self._bringer.tracked, self.changes)
        """Of all revisions."""
        self._local = LocalAdapters(
            self.catalogue, self._bringer, self._store, self.changes, base_name=config.served_name
        )
        self.ad_hoc = AdHoc(
            self._sources,
            self._store,
            self._bringer,
            max_adapters=config.max_ad_hoc_adapters,
            can_load=config.engine.load_on_demand,
        )
        """Adapters that requests name; only asked where that is allowed."""
        self._layout: RowLayout | None = None
        self._first: Sequence[Entry] = ()
        """Resident entries of the operator's first catalogue."""
        self._is_ready = False
        self._becoming_ready: asyncio.Task[None] | None = None
        engine.subscribe(self._bringer.hear)
        engine.subscribe(self.merges.hear)

    async def start(self) -> None:
        """Begin with the adapters of the command line; the engine is ready."""
        self._local.start(self._config.adapters, max_resident=self.engine_ready.budgets.max_resident_adapters)
        self._is_ready = not self.ready_reason
        if not self._is_ready:
            self._becoming_ready = asyncio.create_task(self._become_ready())

    async def close(self) -> None:
        """End what is under way."""
        if self._becoming_ready is not None:
            self._becoming_ready.cancel()
            await asyncio.gather(self._becoming_ready, return_exceptions=True)
        await self.merges.close()
        await self._local.close()
        await self._bringer.close()
        await self._store.close()
        self._sources.close()

    @property
    def row_layout(self) -> RowLayout:
        """How adapters lie in the engine's pages.

        Raises:
            EngineNotReady: the base model is not loaded yet.
        """
        if self._layout is None:
            ready = self.engine_ready
            self._layout = RowLayout.of(ready.budgets.held or ready.facts)
        return self._layout

    @property
    def engine_ready(self) -> EngineReady:
        """Facts and budgets of the engine.

        Raises:
            EngineNotReady: the base model is not loaded yet.
        """
        ready = self._engine.facts
        if ready is None:
            raise EngineNotReady("the base model is still being loaded", retry_after_seconds=RETRY_SECONDS)
        return ready

    @property
    def ready(self) -> bool:
        """Whether what the start asked for is there, or has failed, or took too long; once true, it stays."""
        return self._is_ready

    @property
    def ready_reason(self) -> str:
        """What `ready` waits for."""
        if self._config.wait_for_catalogue and not self.catalogue.was_written:
            return "the operator's first catalogue has not come"
        waiting = self._local.waiting()
        for entry in self._first:
            tracked = self._bringer.tracked.get(entry.key)
            if tracked is not None and not tracked.is_settled:
                waiting.append(entry.name)
        return f"adapters are being loaded: {', '.join(sorted(set(waiting))[:10])}" if waiting else ""

    @property
    def local_failures(self) -> list[LocalFailure]:
        """Adapters of the command line that could not be resolved."""
        return list(self._local.failures.values())

    def sources(self, name: str) -> list[ResolvedSource]:
        """Return what the operator's revisions of a name are made of."""
        return [entry.resolved for entry in self.catalogue.revisions(name) if entry.resolved is not None]

    def knows(self, model: str) -> bool:
        """Whether a name means the base, or an adapter that was declared, come or not."""
        names = (self._config.served_name, *(name for name, _ in self._config.adapters))
        return model in names or bool(self.catalogue.revisions(model))

    def models(self) -> list[ListedModel]:
        """Return the base and the adapters that can be asked by their names."""
        base = self._config.served_name
        listed = [ListedModel(base, self._created, self._config.engine.model, None, None)]
        for tracked in self._bringer.tracked.values():
            entry = tracked.entry
            if entry.stable and entry.name != base and tracked.phase not in (Phase.FAILED, Phase.DRAINING):
                artifact, revision = entry.artifact, entry.key.revision
                root, invocation = artifact.source.show(artifact.place), artifact.facts.invocation_tokens
                listed.append(ListedModel(entry.name, tracked.created, root, base, revision, invocation))
        return listed

    async def lease(self, model: str, revision: str | None) -> Lease:
        """Return the right to a revision of an adapter, the stable one if none is named, or to the base model.

        A known adapter that is not in the engine is brought, and waited for up to --adapter-hold-seconds.

        Raises:
            ModelNotFound: nothing has this name.
            RevisionNotFound: the adapter has no such revision.
            AdapterLoading: it did not come in time.
            AdapterFailed: it was refused or failed; the message says why.
        """
        if model == self._config.served_name:
            if revision is not None:
                raise RevisionNotFound(f"{model} is the base model and has no revisions")
            return Lease(None)
        seconds = self._config.adapter_hold_seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._answerable(model, revision)
        except TimeoutError:
            raise AdapterLoading(
                f"adapter {model} is on its way and did not come within {seconds:g} s",
                retry_after_seconds=RETRY_SECONDS,
            ) from None

    async def _answerable(self, model: str, revision: str | None) -> Lease:
        while True:
            entry = self.catalogue.find(model, revision)
            if entry is None:
                await self._local.arrival(model)
                entry = self.catalogue.find(model, revision)
            if entry is None:
                raise self._unknown(model, revision)
            tracked = self._bringer.tracked[entry.key]
            if tracked.is_answerable:
                return tracked.take()
            self._check_coming(tracked)
            self._bringer.want(tracked)
            await tracked.changed()

    def _unknown(self, model: str, revision: str | None) -> RequestError:
        if self.catalogue.revisions(model):
            if revision is not None:
                return RevisionNotFound(f"adapter {model} has no revision {revision} here")
            return AdapterLoading(f"adapter {model} has no stable revision yet", retry_after_seconds=RETRY_SECONDS)
        failure = self._local.failures.get(model)
        if failure is None:
            return ModelNotFound(f"no model {model!r}", param="model")
        return AdapterFailed(f"adapter {model}: {failure.reason}: {failure.message}")

    def _check_coming(self, tracked: Tracked) -> None:
        name, error = tracked.entry.name, tracked.error
        if error is not None:
            message = f"adapter {name}: {error}"
            if not error.retryable:
                raise AdapterFailed(message)
            raise AdapterLoading(message, retry_after_seconds=max(RETRY_SECONDS, tracked.retry_seconds))
        is_kept_out = not self._config.engine.load_on_demand and tracked.entry.residency is Residency.ON_DEMAND
        if is_kept_out or tracked.phase is Phase.REGISTERED:
            raise AdapterLoading(
                f"adapter {name} is not resident, and this pod does not load on demand",
                retry_after_seconds=RETRY_SECONDS,
            )

    def write(self, write: CatalogueWrite) -> None:
        """Take a catalogue of the operator.

        Raises:
            StaleWrite: it is older than the last accepted one.
            Contradiction: two revisions of a name are stable.
        """
        is_first = not self.catalogue.was_written
        changes = self.catalogue.write(
            fence=write.fence,
            generation=write.generation,
            entries=[self._entry(entry) for entry in write.adapters],
            removed=write.removed,
        )
        if is_first:
            self._first = [entry for entry in changes.put if entry.residency is Residency.RESIDENT]
        self._bringer.apply(changes, drain_seconds=write.drain_timeout_seconds)
        self.changes.bump()

    async def resolve(self, ref: SourceRef, expected_digest: Digest | None) -> ResolvedSource:
        """Pin a reference to content, and judge it against the base.

        Raises:
            AdapterError: the source did not give it, or it is not taken.
            EngineNotReady: there is no base to judge it against yet.
        """
        self.engine_ready  # noqa: B018  a download in vain is none
        source, place = self._sources.of(ref)
        artifact = await self._store.resolve(source, place, expected_digest)
        pinned = ref.model_copy(update={"revision": artifact.place.revision})
        return ResolvedSource(ref=pinned, digest=artifact.digest, files=list(artifact.files), facts=artifact.facts)

    async def put_local(self, name: str, ref: SourceRef, *, pinned: bool) -> ObservedAdapter:
        """Make content of a declared source answer to a name, in the place of what did before.

        Raises:
            AdapterError: it was refused or failed; what answered before still does.
            NotOwned: the name is the operator's.
            EngineNotReady: there is no base to judge it against yet.
        """
        self.engine_ready  # noqa: B018  a download in vain is none
        source, place = self._sources.of(ref)
        tracked = await self._local.put(name, source, place, pinned=pinned)
        return tracked.observed()

    def ref_of(self, text: str) -> SourceRef:
        """Return what a path, `s3://…`, `oci://…` or hub repository means among the declared sources.

        Raises:
            AdapterError: SOURCE_NOT_ALLOWED: nothing.
        """
        return self._sources.ref_of(text)

    async def remove_local(self, name: str, *, drain_seconds: float) -> bool:
        """Remove a name when its requests have ended; False if nothing has it.

        Raises:
            NotOwned: the name is the operator's.
        """
        return await self._local.remove(name, drain_seconds=drain_seconds)

    def _entry(self, entry: CatalogueEntry) -> Entry:
        resolved = entry.source
        source, place = self._sources.of(resolved.ref)
        if entry.name == self._config.served_name:
            message = f"{entry.name} is the name of the base model"
            source = Refusing(source.name, Reason.NAME_CONFLICT, message)
        artifact = Artifact(resolved.digest, tuple(resolved.files), resolved.facts, source, place)
        return Entry(
            name=entry.name,
            artifact=artifact,
            owner=Owner.OPERATOR,
            residency=entry.residency,
            pinned=entry.pinned,
            stable=entry.stable,
            resolved=resolved,
        )

    def _facts(self, folder: Path) -> AdapterFacts:
        plan, ready = self._inspect(folder), self.engine_ready
        num_pages = pages_of_files(plan, self.row_layout, ready.budgets.held or ready.facts)
        return plan.facts.model_copy(update={"memory_pages": num_pages})

    def _inspect(self, folder: Path) -> AdapterPlan:
        ready = self.engine_ready
        unknown = self._config.engine.unknown_config_fields
        plan = inspect_adapter(folder, ready.facts, ready.budgets.max_rank, unknown_config_fields=unknown)
        if self._judge is not None:
            self._judge(folder, plan.vocabulary.num_inputs)
        return plan

    async def _free_one(self) -> bool:
        has_freed = await self._bringer.free_one()
        await self.merges.settled()
        return has_freed

    async def _become_ready(self) -> None:
        seconds = self._config.ready_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                while self.ready_reason:
                    await self.changes.wait(self.changes.number, seconds)
        except TimeoutError:
            logger.warning("ready after %g s, although %s", seconds, self.ready_reason)
        self._is_ready = True
        self.changes.bump()
