"""What answers of an API server mean, for operator and gateway alike."""

import json
from pathlib import Path

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from lorafleet_common.kube import errors
from lorafleet_common.kube.client import KubeApi, error_of, proxy_of


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (400, errors.KubeInvalid, False),
        (401, errors.KubeRefused, False),
        (403, errors.KubeRefused, False),
        (404, errors.KubeNotFound, False),
        (405, errors.KubeRefused, False),
        (409, errors.KubeConflict, True),
        (410, errors.KubeExpired, True),
        (422, errors.KubeInvalid, False),
        (429, errors.KubeUnavailable, True),
        (500, errors.KubeUnavailable, True),
        (503, errors.KubeUnavailable, True),
    ],
)
def test_each_status_has_its_class(status: int, kind: type[errors.KubeError], retryable: bool) -> None:
    error = error_of(status, json.dumps({"reason": "Because", "message": "of this"}).encode())
    assert type(error) is kind
    assert error.retryable is retryable
    assert (error.status, error.reason, error.message) == (status, "Because", "of this")


def test_a_field_that_the_schema_does_not_know_is_the_fault_of_the_object() -> None:
    """An API server answers that with 500 to an apply; any other 500 is its own trouble."""
    raw = json.dumps({"message": ".spec.color: field not declared in schema"}).encode()
    assert type(error_of(500, raw, is_apply=True)) is errors.KubeInvalid
    assert type(error_of(500, raw)) is errors.KubeUnavailable


async def test_a_page_of_a_proxy_is_no_answer() -> None:
    async def page(_: web.BaseRequest) -> web.Response:
        return web.Response(text="<html>sign in</html>", content_type="text/html")

    runner = web.ServerRunner(web.Server(page))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    api = KubeApi(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}"))
    try:
        with pytest.raises(errors.KubeUnavailable, match="NotUnderstood"):
            await api.get("/api/v1/namespaces/one")
        with pytest.raises(errors.KubeUnavailable, match="NotUnderstood"):
            await api.list("/api/v1/pods")
    finally:
        await api.close()
        await runner.cleanup()


async def test_a_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append(str(request.url))
        return web.json_response({"items": []})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    proxy = f"http://127.0.0.1:{runner.addresses[0][1]}"
    for name in ("https_proxy", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "other.example,.internal")
    api = KubeApi(Configuration(host="http://kubernetes.example:6443"))
    try:
        assert await api.get("/api/v1/pods") == {"items": []}
    finally:
        await api.close()
        await runner.cleanup()
    assert asked == ["http://kubernetes.example:6443/api/v1/pods"]
    assert proxy_of("http://other.example:6443") is None
    assert proxy_of("http://api.internal") is None
    assert proxy_of("https://kubernetes.example") is None


async def test_a_request_reads_no_file_of_passwords(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The token is what it is: aiohttp refuses a request with both, and looks for the file in another thread each time."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.json_response({"given": request.headers.get("authorization")})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    api = KubeApi(Configuration(host=host, api_key={"BearerToken": "Bearer token"}))
    try:
        assert await api.get("/api") == {"given": "Bearer token"}
    finally:
        await api.close()
        await runner.cleanup()


async def test_a_list_has_all_pages_without_what_nobody_reads_and_says_the_same_with_the_same_strings() -> None:
    asked: list[str | None] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append(request.query.get("continue"))
        metadata = {"resourceVersion": "7"} if asked[-1] else {"resourceVersion": "5", "continue": "more"}
        managed = {"managedFields": [{"manager": "somebody"}]}
        items = [{"metadata": {"name": f"{len(asked)}-{number}", **managed}, "phase": "Ready"} for number in range(2)]
        return web.json_response({"metadata": metadata, "items": items})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    api = KubeApi(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}"))
    try:
        listed = await api.list("/api/v1/pods")
    finally:
        await api.close()
        await runner.cleanup()
    assert (listed.version, asked) == (5, [None, "more"])
    assert [item["metadata"] for item in listed.items] == [{"name": name} for name in ("1-0", "1-1", "2-0", "2-1")]
    assert len({id(item["phase"]) for item in listed.items}) == 1
