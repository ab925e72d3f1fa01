"""What answers of an API server mean, for operator and gateway alike."""

import json

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from lorafleet_common.kube import errors
from lorafleet_common.kube.client import KubeApi, error_of


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
