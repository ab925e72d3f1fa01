"""The protocol: model info, and HEAD and GET of files with ranges."""

import hmac
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from hubserver.repositories import Commit, HubFile, Repositories

PIECE_BYTES = 1 << 20


@dataclass
class Trouble:
    """What goes wrong on purpose, for tests: answers with a status, or breaks off."""

    status: int = 0
    """Answer the next `times` requests with this."""
    times: int = 0
    cut_after_bytes: int | None = None
    """End the next `times` bodies after this many bytes, though more were promised."""
    moved_to: str = ""
    """Send downloads to another server, as hubs do whose files lie in a store of others."""
    requests: list[str] = field(default_factory=list)
    """What was asked: `METHOD path range`."""
    gates: dict[str, set[str]] = field(default_factory=dict)
    """Repository -> tokens that open its files; everybody may list it, as on hubs whose owners ask for consent."""
    authorizations: set[str] = field(default_factory=set)
    """What requests said of who asks."""
    halfway: threading.Event | None = None
    """Where weights wait in the middle of their way, until it is set."""
    pace: Callable[[int], object] | None = None
    """Called before each piece of weights goes out, with its bytes; takes the time that they take."""

    def take(self) -> bool:
        """Whether this request is one that goes wrong."""
        if self.times <= 0:
            return False
        self.times -= 1
        return True


def hub_app(repositories: Repositories, *, token: str | None = None, trouble: Trouble | None = None) -> Starlette:
    """Return the app; with a token, requests without it get 401."""
    trouble = trouble or Trouble()

    def refused(request: Request) -> Response | None:
        trouble.requests.append(f"{request.method} {request.url.path} {request.headers.get('range', '')}".strip())
        trouble.authorizations.add(request.headers.get("authorization", ""))
        if trouble.status and trouble.take():
            return Response("in trouble", trouble.status)
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token is not None and not hmac.compare_digest(given, token):
            return _error(401, "RepoNotFound", "Repository not found")
        if not repositories.exists(_repo(request)):
            return _error(404, "RepoNotFound", "Repository not found")
        return None

    async def info(request: Request) -> Response:
        if (answer := refused(request)) is not None:
            return answer
        commit = repositories.commit(_repo(request), request.path_params.get("revision", "main"))
        if commit is None:
            return _error(404, "RevisionNotFound", "Invalid rev id")
        return JSONResponse(_info(_repo(request), commit))

    async def resolve(request: Request) -> Response:
        if (answer := refused(request)) is not None:
            return answer
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if given not in trouble.gates.get(_repo(request), {given}):
            return _error(403, "GatedRepo", "Access to this repository is restricted")
        commit = repositories.commit(_repo(request), request.path_params["revision"])
        if commit is None:
            return _error(404, "RevisionNotFound", "Invalid rev id")
        file = commit.file(request.path_params["name"])
        if file is None:
            return _error(404, "EntryNotFound", "Entry not found", commit)
        if trouble.moved_to:
            return RedirectResponse(trouble.moved_to + request.url.path, 302)
        headers = {"x-repo-commit": commit.sha, "etag": f'"{file.etag}"', "accept-ranges": "bytes"}
        if file.is_lfs:
            headers |= {"x-linked-size": str(file.size), "x-linked-etag": f'"{file.sha256}"'}
        cut_after = trouble.cut_after_bytes
        if request.method == "GET" and cut_after is not None and file.size > cut_after and trouble.take():
            return _Cut(file, cut_after, headers)
        if request.method == "GET" and file.is_lfs and trouble.halfway is not None:
            return StreamingResponse(
                _in_halves(file, trouble.halfway), headers=headers | {"content-length": str(file.size)}
            )
        if request.method == "GET" and file.is_lfs and trouble.pace is not None:
            return StreamingResponse(_paced(file, trouble.pace), headers=headers | {"content-length": str(file.size)})
        return FileResponse(file.path, headers=headers, media_type="application/octet-stream")

    return Starlette(
        routes=[
            Route("/api/models/{organisation}/{repo}", info),
            Route("/api/models/{organisation}/{repo}/revision/{revision:path}", info),
            Route("/{organisation}/{repo}/resolve/{revision}/{name:path}", resolve, methods=["GET", "HEAD"]),
            Route("/health", lambda _: Response("ok")),
        ]
    )


def _paced(file: HubFile, pace: Callable[[int], object]) -> Iterator[bytes]:
    with file.path.open("rb") as content:
        while piece := content.read(PIECE_BYTES):
            pace(len(piece))
            yield piece


def _in_halves(file: HubFile, halfway: threading.Event) -> Iterator[bytes]:
    data = file.path.read_bytes()
    yield data[: file.size // 2]
    halfway.wait()
    yield data[file.size // 2 :]


class _Cut(Response):
    """A body that ends early: the connection breaks off after some bytes of what was promised."""

    def __init__(self, file: HubFile, num_bytes: int, headers: dict[str, str]) -> None:
        super().__init__(file.path.read_bytes()[:num_bytes], headers=headers)
        self.headers["content-length"] = str(file.size)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})


def _repo(request: Request) -> str:
    return f"{request.path_params['organisation']}/{request.path_params['repo']}"


def _error(status: int, code: str, message: str, commit: Commit | None = None) -> Response:
    headers = {"x-error-code": code, "x-error-message": message}
    if commit is not None:
        headers["x-repo-commit"] = commit.sha
    return JSONResponse({"error": message}, status, headers)


def _info(repo: str, commit: Commit) -> dict[str, object]:
    return {
        "id": repo,
        "modelId": repo,
        "sha": commit.sha,
        "private": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": [_sibling(file) for file in commit.files],
    }


def _sibling(file: HubFile) -> dict[str, object]:
    sibling: dict[str, object] = {"rfilename": file.name, "size": file.size, "blobId": file.blob_id}
    if file.is_lfs:
        sibling["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
    return sibling
