"""A stranger who knows the OpenAPI document alone is answered as it says, whatever is asked."""

import asyncio
from pathlib import Path

from support.canned_pod import canned_pod, model_without_weights
from support.strangers import ask


async def test_whatever_is_asked_is_answered_as_the_document_says(tmp_path: Path) -> None:
    """No 5xx, no status, header, body or event that it does not have."""
    model_without_weights(tmp_path / "canned", max_model_len=256)
    async with canned_pod(tmp_path / "canned") as served:
        done = await asyncio.to_thread(ask, served.url, ("base",))
    assert done.returncode == 0, done.stdout + done.stderr
