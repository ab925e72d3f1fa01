"""A bucket that keeps versions, as far as reading goes: what rclone's server has not. One bucket, path-style, no signatures."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lorafleet_common.sockets import bind, url_of
from lorafleet_inference.server.listening import http_server


@dataclass
class VersionedBucket:
    """Objects and all their versions, the newest last. `fail`: the next answer is this status and code."""

    url: str = ""
    objects: dict[str, list[bytes]] = field(default_factory=dict)
    fail: tuple[int, str] | None = None
    asked: list[str] = field(default_factory=list)

    def put(self, key: str, data: bytes) -> None:
        self.objects.setdefault(key, []).append(data)

    def answer(self, request: Request) -> Response:
        self.asked.append(f"{request.method} {request.url.path} {request.url.query}".strip())
        if self.fail is not None:
            (status, code), self.fail = self.fail, None
            return _error(status, code)
        key = request.path_params.get("key", "")
        return self._object(request, key) if key else self._list(request.query_params.get("prefix", ""))

    def _list(self, prefix: str) -> Response:
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><ETag>&quot;{_md5(versions[-1])}&quot;</ETag>"
            f"<Size>{len(versions[-1])}</Size></Contents>"
            for key, versions in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        return Response(
            f"<?xml version='1.0'?><ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>",
            media_type="application/xml",
        )

    def _object(self, request: Request, key: str) -> Response:
        versions = self.objects.get(key, [])
        version = request.query_params.get("versionId")
        number = int(version.removeprefix("v")) if version else len(versions)
        if not 1 <= number <= len(versions):
            return _error(404, "NoSuchVersion" if versions else "NoSuchKey")
        data = versions[number - 1]
        if request.headers.get("if-match") not in (None, f'"{_md5(data)}"'):
            return _error(412, "PreconditionFailed")
        headers = {"etag": f'"{_md5(data)}"', "x-amz-version-id": f"v{number}"}
        status = 200
        if (wanted := request.headers.get("range")) is not None:
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            headers["content-range"] = f"bytes {begin}-{end}/{len(data)}"
            data, status = data[int(begin) : int(end) + 1], 206
        if request.method == "HEAD":
            return Response(status_code=status, headers={**headers, "content-length": str(len(data))})
        return Response(data, status, headers)


@contextmanager
def serve_versioned() -> Iterator[VersionedBucket]:
    """Serve the bucket `models`."""
    bucket = VersionedBucket()
    listener = bind("127.0.0.1", 0, option="s3")
    bucket.url = url_of(listener)
    paths = [Route(path, bucket.answer, methods=["GET", "HEAD"]) for path in ("/models", "/models/{key:path}")]
    server = http_server(Starlette(routes=paths))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _error(status: int, code: str) -> Response:
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return Response(text, status, media_type="application/xml")
