"""A 405 tells every method of its path, whichever routes have them."""

from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.loads_engine import LoadsEngine

from lorafleet_inference.adapters.manager import AdapterManager
from lorafleet_inference.config import EngineConfig, ServerConfig
from lorafleet_inference.server.admin import admin_app
from lorafleet_inference.server.admission import Admission
from lorafleet_inference.server.answer_room import AnswerRoom
from lorafleet_inference.server.pod import Pod
from lorafleet_inference.server.public import public_app
from lorafleet_inference.server.reading import Readers
from lorafleet_inference.server.state import PodState


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    engine: Any = LoadsEngine()
    config = ServerConfig(engine=EngineConfig(model="/models/base"), served_name="base", cache_dir=tmp_path)
    manager = AdapterManager(engine, config, boot_id="boot")
    nothing: Any = None
    with closing(Readers()) as readers:
        state = PodState(manager.changes.bump)
        yield Pod(config, engine, manager, nothing, state, Admission(8), AnswerRoom(1 << 20), readers)
    await manager.close()
    engine.close()


@pytest.mark.parametrize(
    ("app", "method", "path", "allowed"),
    [
        (public_app, "DELETE", "/", "GET, POST"),
        (public_app, "GET", "/v1/chat/completions", "POST"),
        (public_app, "DELETE", "/ping", "GET, POST"),
        (public_app, "DELETE", "/v1/routes", "GET"),  # a route of an included router
        (public_app, "DELETE", "/v1/models/a/b", "GET"),
        (admin_app, "DELETE", "/admin/v1/state", "GET"),
        (admin_app, "POST", "/admin/v1/adapters/x", "DELETE, GET, PUT"),
        (admin_app, "GET", "/admin/v1/adapters", "PUT"),
    ],
)
async def test_what_a_path_takes_instead(pod: Pod, app: Any, method: str, path: str, allowed: str) -> None:
    made = public_app(pod) if app is public_app else admin_app(pod, None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://pod", timeout=20) as http:
        told = await http.request(method, path)
    assert (told.status_code, told.headers["allow"]) == (405, allowed)
