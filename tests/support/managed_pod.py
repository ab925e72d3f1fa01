"""An adapter manager over real files, a real cache and the engine's real loads."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.adapter_files import write_adapter
from support.loads_engine import LoadsEngine

from lorafleet_contract.admin import AdapterState, CatalogueEntry, CatalogueWrite, ObservedAdapter
from lorafleet_contract.sources import AdapterSource, ResolvedSource, SourceRef
from lorafleet_inference.adapters.manager import AdapterManager
from lorafleet_inference.config import ServerConfig

VOLUME = AdapterSource.model_validate({"name": "volume", "volume": {"claimName": "claim"}})


class ManagedPod:
    """A manager with its engine, and a volume for its adapters."""

    def __init__(self, engine: LoadsEngine, config: ServerConfig) -> None:
        self.engine = engine
        self.config = config
        self.manager = AdapterManager(engine, config, boot_id="boot")
        self._generation = 0

    def adapter(self, name: str, **fields: Any) -> Path:
        return write_adapter(self.config.volumes_dir / "volume" / name, **fields)

    async def resolved(self, name: str) -> ResolvedSource:
        return await self.manager.resolve(SourceRef(name="volume", path=name), None)

    async def entry(self, name: str, **flags: Any) -> CatalogueEntry:
        if not (self.config.volumes_dir / "volume" / name).exists():
            self.adapter(name, seed=sum(name.encode()))
        return CatalogueEntry(name=name, source=await self.resolved(name), **flags)

    def write(self, *entries: CatalogueEntry, removed: Any = (), **fields: Any) -> None:
        self._generation += 1
        self.manager.write(
            CatalogueWrite(
                fence=1, generation=self._generation, adapters=list(entries), removed=list(removed), **fields
            )
        )

    def seen(self, name: str, revision: str | None = None) -> ObservedAdapter | None:
        found = (one for one in self.manager.shown.observed() if one.name == name and revision in (None, one.revision))
        return next(found, None)

    async def until(self, what: str, condition: Callable[[], object]) -> None:
        """Wait for a condition on what the manager shows."""
        try:
            async with asyncio.timeout(60):
                while not condition():
                    await self.manager.changes.wait(self.manager.changes.number, 0.2)
        except TimeoutError:
            raise AssertionError(f"{what}: {self.manager.shown.observed()}") from None

    async def until_state(self, name: str, state: AdapterState) -> ObservedAdapter:
        def reached() -> bool:
            seen = self.seen(name)
            return seen is not None and seen.state is state

        await self.until(f"{name} {state}", reached)
        seen = self.seen(name)
        assert seen is not None
        return seen
