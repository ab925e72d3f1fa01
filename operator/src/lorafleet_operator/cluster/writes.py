"""Writes to the API server, for as long as this process leads."""

from collections.abc import Callable
from typing import Final

from lorafleet_common.kube.client import KubeApi
from lorafleet_common.paths import Json
from lorafleet_operator.errors import NotLeading

WRITE_TIMEOUT_SECONDS: Final = 10.0
"""A write that is sent in the last moment of a leadership ends before another operator may lead."""


class Writes:
    """The verbs with which passes change the cluster, for as long as this process leads."""

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

    async def delete(self, path: str, *, uid: str) -> None:
        """As KubeApi.delete.

        Raises:
            NotLeading: nothing was sent.
        """
        self._check()
        await self._api.delete(path, uid=uid, timeout_seconds=WRITE_TIMEOUT_SECONDS)

    def _check(self) -> None:
        if not self._is_held():
            raise NotLeading(0, "NotLeading", "the Lease was not renewed in time")
