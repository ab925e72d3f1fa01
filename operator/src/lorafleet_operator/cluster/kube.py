"""The API server as JSON: one request function over `kubernetes.aio`, and the few verbs that the operator uses.

The typed API classes of the client are left alone: their first use stalls the event loop and takes 100 MiB.
"""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, Configuration

from lorafleet_common.paths import Json, version_of
from lorafleet_operator.errors import KubeConflict, KubeError, KubeInvalid, KubeNotFound, KubeUnavailable, NotLeading

APPLY: Final = "application/apply-patch+yaml"
REQUEST_TIMEOUT_SECONDS: Final = 30.0
WRITE_TIMEOUT_SECONDS: Final = 10.0
"""A write that is sent in the last moment of a leadership ends before another operator may lead."""
PAGE: Final = 500
"""Objects in one answer of a list."""
SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class Listed:
    """A complete list."""

    items: list[Json]
    version: int
    """Of the whole list: what is not in it and has an older version is gone."""


async def connect() -> "KubeApi":
    """Return the API server of the cluster that this process runs in, else of the kubeconfig at hand.

    Inside a cluster the token file is read again every minute.

    Raises:
        KubeUnavailable: there is neither.
    """
    configuration = Configuration()
    try:
        if (SERVICE_ACCOUNT / "token").is_file():
            kube_config.load_incluster_config(client_configuration=configuration)
        else:
            await kube_config.load_kube_config(client_configuration=configuration)
    except (kube_config.ConfigException, OSError) as error:
        raise KubeUnavailable(0, "NoCluster", f"neither a service account nor a kubeconfig: {error}") from error
    return KubeApi(ApiClient(configuration))


class KubeApi:
    """Requests to one API server; owns its connections."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    @property
    def configuration(self) -> Configuration:
        """Where it is and how it is talked to."""
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
        headers = {"Accept": "application/json", "Content-Type": content_type}
        try:
            serialised = await self._client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            answer = await self._client.call_api(*serialised, _request_timeout=timeout_seconds)
            raw = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise KubeUnavailable(0, type(error).__name__, str(error) or f"{method} {path}") from error
        if not 200 <= answer.status < 300:
            raise _error(answer.status, raw, is_apply=content_type == APPLY)
        return answer.status, json.loads(raw) if raw else {}

    async def get(self, path: str) -> Json:
        """Return one object.

        Raises:
            KubeError: it could not be had.
        """
        return (await self.request("GET", path))[1]

    async def list(self, path: str, *, labels: str | None = None) -> Listed:
        """Return all objects of a collection, page by page.

        Raises:
            KubeError: a page could not be had; there is no partial answer.
        """
        items: list[Json] = []
        version = 0
        query = {"limit": str(PAGE), **({"labelSelector": labels} if labels else {})}
        while True:
            _, page = await self.request("GET", path, query=query)
            items.extend(page.get("items") or [])
            metadata = page.get("metadata", {})
            version = version or version_of(page)  # of the first page: what was changed since is not in the others
            token = metadata.get("continue")
            if not token:
                return Listed(items, version)
            query["continue"] = token

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


class Writes:
    """The two verbs with which passes change the cluster, for as long as this process leads."""

    def __init__(self, api: KubeApi, is_held: Callable[[], bool]) -> None:
        self._api = api
        self._is_held = is_held

    async def create(self, path: str, body: Json, *, dry_run: bool = False) -> Json:
        """As KubeApi.create.

        Raises:
            NotLeading: nothing was sent.
        """
        self._check()
        return await self._api.create(path, body, dry_run=dry_run, timeout_seconds=WRITE_TIMEOUT_SECONDS)

    async def apply(self, path: str, body: Json, *, manager: str, dry_run: bool = False) -> Json:
        """As KubeApi.apply.

        Raises:
            NotLeading: nothing was sent.
        """
        self._check()
        return await self._api.apply(
            path, body, manager=manager, dry_run=dry_run, timeout_seconds=WRITE_TIMEOUT_SECONDS
        )

    def _check(self) -> None:
        if not self._is_held():
            raise NotLeading(0, "NotLeading", "the Lease was not renewed in time")


def _error(status: int, raw: bytes, *, is_apply: bool) -> KubeError:
    reason, message = "", raw[:500].decode(errors="replace")
    with contextlib.suppress(ValueError, AttributeError):
        document = json.loads(raw)
        reason, message = document.get("reason") or "", document.get("message") or message
    if status == 404:
        return KubeNotFound(status, reason, message)
    if status == 409:
        return KubeConflict(status, reason, message)
    # an unknown field in an apply is answered 500 without a reason
    if status in (400, 422) or (status == 500 and is_apply and "field not declared in schema" in message):
        return KubeInvalid(status, reason, message)
    # 410: the pages of a list grew too old
    if status in (410, 429) or status >= 500:
        return KubeUnavailable(status, reason, message)
    return KubeError(status, reason, message)
