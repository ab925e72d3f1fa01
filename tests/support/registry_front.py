"""What stands before a registry: a token server and its check, a store of others, and connections that break."""

import base64
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from support.registries import PASSWORD, USERNAME

from lorafleet_common.sockets import bind, url_of
from lorafleet_inference.server.listening import http_server

SERVICE = "registry of the tests"


@dataclass
class RegistryFront:
    """Passes what it is asked to a registry that is open, and goes wrong on purpose."""

    upstream: str
    wants_token: bool = False
    url: str = ""
    status: int = 0
    """Answer everything with this, where not 0."""
    moved_to: str = ""
    """Send whoever asks for a blob there."""
    cut_after_bytes: int | None = None
    """End the next body of a blob after this many bytes."""
    changed: bytes | None = None
    """Give this instead of any body."""
    num_tokens: int = 0
    """How many tokens were given."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """What was asked: path, range, authorization."""
    scopes: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    async def token(self, request: Request) -> Response:
        """Give a token for a login."""
        login = "Basic " + base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
        if request.headers.get("authorization") != login or request.query_params.get("service") != SERVICE:
            return JSONResponse({"errors": []}, 401)
        self.scopes.append(request.query_params["scope"])
        self.num_tokens += 1
        return JSONResponse({"token": self._current, "expires_in": 300})

    async def answer(self, request: Request) -> Response:
        """Answer for the registry."""
        given = request.headers.get("authorization", "")
        self.requests.append((request.url.path, request.headers.get("range", ""), given))
        if self.status:
            return Response("in trouble", self.status)
        if self.wants_token and (not self.num_tokens or given != f"Bearer {self._current}"):
            challenge = f'Bearer realm="{self.url}/token",service="{SERVICE}",scope="repository:other:pull,push"'
            return Response(status_code=401, headers={"www-authenticate": challenge})
        if self.moved_to and "/blobs/" in request.url.path:
            return RedirectResponse(self.moved_to + request.url.path, 307)
        passed = {name: value for name in ("accept", "range") if (value := request.headers.get(name)) is not None}
        async with httpx.AsyncClient() as client:
            answer = await client.get(self.upstream + request.url.path, headers=passed)
        kept = ("content-type", "content-range", "docker-content-digest")
        headers = {name: answer.headers[name] for name in kept if name in answer.headers}
        if self.changed is not None:
            return Response(self.changed, answer.status_code, headers)
        if self.cut_after_bytes is not None and "/blobs/" in request.url.path:
            body, self.cut_after_bytes = answer.content[: self.cut_after_bytes], None
            return StreamingResponse(
                _cut(body), answer.status_code, {**headers, "content-length": str(len(answer.content))}
            )
        return Response(answer.content, answer.status_code, headers)

    @property
    def _current(self) -> str:
        return f"token-{self.num_tokens}"


async def _cut(body: bytes) -> AsyncIterator[bytes]:
    yield body


@contextmanager
def serve_front(upstream: str, *, wants_token: bool = False) -> Iterator[RegistryFront]:
    """Serve it in a thread."""
    front = RegistryFront(upstream, wants_token)
    listener = bind("127.0.0.1", 0, option="registry")
    front.url = url_of(listener)
    routes = [Route("/token", front.token), Route("/{path:path}", front.answer)]
    server = http_server(Starlette(routes=routes))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield front
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
