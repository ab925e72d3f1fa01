"""The API server as JSON: lists, and watches as streams of events, over `kubernetes.aio`.

The typed API classes of the client are left alone: their first use stalls the event loop and takes 100 MiB.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, Configuration

from lorafleet_common.kube.errors import KubeError, KubeExpired, KubeRefused, KubeUnavailable
from lorafleet_common.paths import Json

PAGE: Final = 500
"""Objects in one answer of a list."""
LIST_TIMEOUT: Final = aiohttp.ClientTimeout(total=30.0, sock_connect=5.0)
WATCH_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=75.0)
"""Bookmarks come about once a minute; a longer silence is a dead connection."""
WATCH_SECONDS: Final = 600
"""After this the API server ends a watch and it is begun again."""
SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class Page:
    """A complete list, all pages together."""

    items: list[Json]
    version: str
    """resourceVersion from which a watch sees everything that came later."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a watch: ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    body: Json


async def connect() -> "KubeApi":
    """Return the API server of the cluster that this process runs in, else of the kubeconfig at hand.

    Raises:
        KubeUnavailable: there is neither.
    """
    configuration = Configuration()
    try:
        if (SERVICE_ACCOUNT / "token").is_file():
            kube_config.load_incluster_config(client_configuration=configuration, try_refresh_token=False)
            use_token_file(configuration, SERVICE_ACCOUNT / "token")
        else:
            await kube_config.load_kube_config(client_configuration=configuration)
    except (kube_config.ConfigException, OSError) as error:
        raise KubeUnavailable(0, "NoCluster", f"neither a service account nor a kubeconfig: {error}") from error
    return KubeApi(configuration)


def use_token_file(configuration: Any, token_file: Path) -> None:
    """Read the token at each request (there are a few a minute), so that a rotated one is used at once."""

    def read(configuration: Any) -> None:
        with contextlib.suppress(OSError):  # while the kubelet swaps the file the last token is still good
            if token := token_file.read_text().strip():
                configuration.api_key["BearerToken"] = f"Bearer {token}"

    configuration.refresh_api_key_hook = read
    read(configuration)


class KubeApi:
    """Requests to one API server; owns its connections."""

    def __init__(self, configuration: Any) -> None:
        configuration.connection_pool_maxsize = 0  # each watch keeps a connection; there may be many namespaces
        self._client = ApiClient(configuration)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def list(
        self, path: str, query: Mapping[str, str], *, patience: aiohttp.ClientTimeout = LIST_TIMEOUT
    ) -> Page:
        """Return all objects of a collection, page by page.

        Raises:
            KubeError: a page could not be had; there is no partial answer.
        """
        items: list[Json] = []
        asked = {**query, "limit": str(PAGE)}
        while True:
            page = await self._page(path, asked, patience)
            items.extend(page.get("items") or [])
            metadata = page.get("metadata") or {}
            if not (token := metadata.get("continue")):
                return Page(items, metadata.get("resourceVersion", ""))
            asked["continue"] = token

    async def watch(self, path: str, query: Mapping[str, str], *, version: str) -> AsyncIterator[Event]:
        """Yield what happens to a collection after `version`, bookmarks included, until the API server ends the watch.

        Raises:
            KubeExpired: the version is too old.
            KubeError: the watch could not be had, or broke.
        """
        asked = {
            **query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        with _as_kube_errors(path):
            response = await self._send(path, asked, WATCH_TIMEOUT)
            async with response:
                if response.status != 200:
                    raise _error(response.status, await response.read())
                async for line in response.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise _error_of_status(event["object"])
                    yield Event(event["type"], event["object"])

    async def _page(self, path: str, query: Mapping[str, str], patience: aiohttp.ClientTimeout) -> Json:
        with _as_kube_errors(path):
            async with await self._send(path, query, patience) as response:
                raw = await response.read()
                if response.status != 200:
                    raise _error(response.status, raw)
                page: Json = json.loads(raw)
                return page

    async def _send(
        self, path: str, query: Mapping[str, str], patience: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        serialised = await self._client.param_serialize(
            "GET",
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        answer = await self._client.call_api(*serialised, _request_timeout=patience)
        response: aiohttp.ClientResponse = answer.response
        return response


@contextlib.contextmanager
def _as_kube_errors(path: str) -> Any:
    try:
        yield
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise KubeUnavailable(0, type(error).__name__, str(error) or path) from error
    except (ValueError, KeyError) as error:  # half a line, a page of a proxy
        raise KubeUnavailable(0, "NotUnderstood", f"{path}: {error}") from error


def _error(status: int, raw: bytes) -> KubeError:
    try:
        document = json.loads(raw)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"message": raw[:500].decode(errors="replace")}
    return _error_of_status({**document, "code": status})


def _error_of_status(status: Json) -> KubeError:
    code, reason, message = int(status.get("code") or 0), status.get("reason") or "", status.get("message") or ""
    if code == 410 or reason in ("Expired", "Gone"):
        return KubeExpired(code, reason, message)
    if code in (400, 401, 403, 404, 405, 422):
        return KubeRefused(code, reason, message)
    return KubeUnavailable(code, reason, message)
