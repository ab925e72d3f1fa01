"""As of a pod, through the gateway, with its own document."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

from support.canned_pod import canned_pod, model_without_weights
from support.strangers import ask
from support.upstream_pods import PodDouble

from .conftest import World


async def test_whatever_is_asked_is_answered_as_the_document_says(world: World, tmp_path: Path) -> None:
    model_without_weights(tmp_path / "canned", max_model_len=256)
    world.base("base")
    async with canned_pod(tmp_path / "canned") as served:
        world.endpoints(PodDouble("pod-1", port=urlsplit(served.url).port or 0), base="base")
        client = await world.open()
        assert (await client.post("/v1/completions", json={"model": "base", "prompt": "x"})).status_code == 200
        done = await asyncio.to_thread(ask, str(client.base_url), ("base",))
    assert done.returncode == 0, done.stdout + done.stderr
