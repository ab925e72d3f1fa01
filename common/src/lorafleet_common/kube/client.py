"""The API server as JSON: the verbs that we use, and watches as streams of events, over `kubernetes.aio`.

The typed API classes of the client are left alone: their first use stalls the event loop and takes 100 MiB.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, Configuration
from pydantic_core import from_json

from lorafleet_common.kube.errors import (
    KubeConflict,
    KubeError,
    KubeExpired,
    KubeInvalid,
    KubeNotFound,
    KubeRefused,
    KubeUnavailable,
)
from lorafleet_common.paths import Json, version_of

APPLY: Final = "application/apply-patch+yaml"
CONNECT_SECONDS: Final = 5.0
REQUEST_TIMEOUT_SECONDS: Final = 30.0
WATCH_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=75.0)
"""Bookmarks come about once a minute; a longer silence is a dead connection."""
WATCH_SECONDS: Final = 600
"""After this the API server ends a watch and it is begun again."""
PAGE: Final = 250
"""Objects in one answer of a list."""
SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class Listed:
    """A complete list, all pages together."""

    items: list[Json]
    version: int
    """Of the whole list: a watch from here sees everything that came later, and what is not in the list and has an older
    version is gone."""


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
    """Read the token at each request, so that a rotated one is used at once; the file lies in memory."""

    def read(configuration: Any) -> None:
        with contextlib.suppress(OSError):  # while the kubelet swaps the file the last token is still good
            if token := token_file.read_text().strip():
                configuration.api_key["BearerToken"] = f"Bearer {token}"

    configuration.refresh_api_key_hook = read
    read(configuration)


def proxy_of(url: str) -> str | None:
    """Return the proxy that the environment (`HTTPS_PROXY`, `NO_PROXY`…) names for a URL; None: it is asked directly."""
    parts = urlsplit(url)
    if parts.hostname is None or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return getproxies().get(parts.scheme)


class KubeApi:
    """Requests to one API server; owns its connections."""

    def __init__(self, configuration: Any) -> None:
        configuration.connection_pool_maxsize = 0  # each watch keeps a connection; there may be many namespaces
        # aiohttp would read the environment, and ~/.netrc, for each request anew, and in another thread
        configuration.client_session_kwargs = {"trust_env": False}
        configuration.proxy = configuration.proxy or proxy_of(configuration.host)
        self._client = ApiClient(configuration)

    @property
    def configuration(self) -> Configuration:
        """Where the API server is and how it is talked to."""
        return self._client.configuration

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
        timeout_seconds: float = REQUEST_TIMEOUT_SECONDS,
    ) -> tuple[int, Json]:
        """Send one request and return the status code and the JSON of a 2xx answer.

        Raises:
            KubeError: another answer, or none; the subclass says which kind.
        """
        limits = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=CONNECT_SECONDS)
        with _as_kube_errors(method, path):
            response = await self._send(method, path, query or {}, limits, body=body, content_type=content_type)
            async with response:
                raw = await response.read()
                if not 200 <= response.status < 300:
                    raise error_of(response.status, raw, is_apply=content_type == APPLY)
                # strings that come again and again, in pages of objects alike, become one object each
                document: Json = from_json(raw, cache_strings="all") if raw else {}
                return response.status, document

    async def get(self, path: str) -> Json:
        """Return one object.

        Raises:
            KubeError: it could not be had.
        """
        return (await self.request("GET", path))[1]

    async def list(
        self,
        path: str,
        *,
        labels: str | None = None,
        fields: str | None = None,
        timeout_seconds: float = REQUEST_TIMEOUT_SECONDS,
    ) -> Listed:
        """Return all objects of a collection, page by page and without managedFields; `timeout_seconds` is for each page.

        Raises:
            KubeError: a page could not be had; there is no partial answer.
        """
        items: list[Json] = []
        version = 0
        query = {**_selectors(labels, fields), "limit": str(PAGE)}
        while True:
            _, page = await self.request("GET", path, query=query, timeout_seconds=timeout_seconds)
            for item in page.get("items") or []:
                (item.get("metadata") or {}).pop(
                    "managedFields", None
                )  # more than all the rest, and of no use to whoever lists
                items.append(item)
            metadata = page.get("metadata") or {}
            # of the first page: what was changed since is not in the others
            version = version or version_of({"metadata": metadata})
            if not (token := metadata.get("continue")):
                return Listed(items, version)
            query["continue"] = token

    async def watch(
        self, path: str, *, version: int, labels: str | None = None, fields: str | None = None
    ) -> AsyncIterator[Event]:
        """Yield what happens to a collection after `version`, bookmarks included, until the API server ends the watch.

        Raises:
            KubeExpired: the version is too old.
            KubeError: the watch could not be had, or broke.
        """
        query = {
            **_selectors(labels, fields),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": str(version),
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        with _as_kube_errors("WATCH", path):
            response = await self._send("GET", path, query, WATCH_TIMEOUT)
            async with response:
                if response.status != 200:
                    raise error_of(response.status, await response.read())
                async for line in response.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise _error_of_status(event["object"])
                    yield Event(event["type"], event["object"])

    async def create(
        self, path: str, body: Json, *, dry_run: bool = False, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS
    ) -> Json:
        """Create an object.

        Raises:
            KubeConflict: it exists.
            KubeError: it could not be made.
        """
        query = {"dryRun": "All"} if dry_run else None
        return (await self.request("POST", path, query=query, body=body, timeout_seconds=timeout_seconds))[1]

    async def replace(self, path: str, body: Json) -> Json:
        """Replace an object; its resourceVersion is compared.

        Raises:
            KubeConflict: it has changed.
            KubeError: it could not be written.
        """
        return (await self.request("PUT", path, body=body))[1]

    async def delete(self, path: str, *, uid: str, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS) -> None:
        """Delete the object of that uid.

        Raises:
            KubeNotFound: it is gone.
            KubeConflict: another one has its name.
            KubeError: it could not be deleted.
        """
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        await self.request("DELETE", path, body=body, timeout_seconds=timeout_seconds)

    async def apply(
        self,
        path: str,
        body: Json,
        *,
        manager: str,
        dry_run: bool = False,
        timeout_seconds: float = REQUEST_TIMEOUT_SECONDS,
    ) -> Json:
        """Apply what `manager` wants of an object, by force, and return the whole object.

        With `metadata.uid` in the body a deleted object is not made again.

        Raises:
            KubeConflict: the object is another one by now.
            KubeInvalid: the body is refused.
            KubeError: it could not be applied.
        """
        query = {"fieldManager": manager, "force": "true", "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        _, applied = await self.request(
            "PATCH", path, query=query, body=body, content_type=APPLY, timeout_seconds=timeout_seconds
        )
        return applied

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        limits: aiohttp.ClientTimeout,
        *,
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> aiohttp.ClientResponse:
        serialised = await self._client.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = await self._client.call_api(*serialised, _request_timeout=limits)
        response: aiohttp.ClientResponse = answer.response
        return response


def _selectors(labels: str | None, fields: str | None) -> dict[str, str]:
    named = {"labelSelector": labels, "fieldSelector": fields}
    return {name: selector for name, selector in named.items() if selector}


@contextlib.contextmanager
def _as_kube_errors(verb: str, path: str) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise KubeUnavailable(0, type(error).__name__, str(error) or f"{verb} {path}") from error
    except (ValueError, KeyError) as error:  # half a line, a page of a proxy
        raise KubeUnavailable(0, "NotUnderstood", f"{verb} {path}: {error}") from error


def error_of(status: int, raw: bytes, *, is_apply: bool = False) -> KubeError:
    """Return what an answer that is not 2xx means."""
    try:
        document = json.loads(raw)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"message": raw[:500].decode(errors="replace")}
    return _error_of_status({**document, "code": status}, is_apply=is_apply)


def _error_of_status(status: Json, *, is_apply: bool = False) -> KubeError:
    code, reason, message = int(status.get("code") or 0), status.get("reason") or "", status.get("message") or ""
    if code == 410 or reason in ("Expired", "Gone"):
        return KubeExpired(code, reason, message)
    if code == 404:
        return KubeNotFound(code, reason, message)
    if code == 409:
        return KubeConflict(code, reason, message)
    # an unknown field in an apply is answered 500 without a reason
    if code in (400, 422) or (code == 500 and is_apply and "field not declared in schema" in message):
        return KubeInvalid(code, reason, message)
    if 400 <= code < 500 and code != 429:
        return KubeRefused(code, reason, message)
    return KubeUnavailable(code, reason, message)
