"""Pods without a server: an adapter manager and what it works with."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from support.loads_engine import LoadsEngine
from support.managed_pod import VOLUME, ManagedPod

from lorafleet_inference.config import EngineConfig, ServerConfig

MakePod = Callable[..., Awaitable[ManagedPod]]


@pytest.fixture
async def make_pod(tmp_path: Path) -> AsyncIterator[MakePod]:
    async with AsyncExitStack() as stack:

        async def make(*, max_resident: int = 4, load_on_demand: bool = True, **fields: Any) -> ManagedPod:
            engine = LoadsEngine(max_resident=max_resident)
            stack.callback(engine.close)
            config = ServerConfig(
                engine=EngineConfig(model="/models/base", load_on_demand=load_on_demand),
                served_name="base",
                volumes_dir=tmp_path / "volumes",
                cache_dir=tmp_path / "cache",
                **{"adapter_hold_seconds": 60.0, "adapter_sources": (VOLUME,), **fields},
            )
            (tmp_path / "volumes" / "volume").mkdir(parents=True, exist_ok=True)
            pod = ManagedPod(engine, config)
            stack.push_async_callback(pod.manager.close)
            await pod.manager.start()
            return pod

        yield make
