"""Long polls of pods: what changes on a pod wakes its base within a second. They carry no decisions."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from lorafleet_operator.act.admin_client import AdminClient
from lorafleet_operator.decide.views import BaseKey, Pod
from lorafleet_operator.errors import AdminError

logger = logging.getLogger(__name__)
FIRST_RETRY_SECONDS: Final = 0.2
MAX_RETRY_SECONDS: Final = 2.0
NEWS_SECONDS: Final = 0.05
"""After a poll that brought something: what a pod changes in a burst is asked for once."""
IDLE_SECONDS: Final = 0.2
"""After a poll that brought nothing: a pod that does not wait must not be asked without a pause."""


@dataclass(frozen=True, slots=True)
class _Address:
    base: BaseKey
    ip: str
    token: str


class PodWatches:
    """One long poll for each pod of each base."""

    def __init__(self, client: AdminClient, wake: Callable[[BaseKey], None]) -> None:
        self._client = client
        self._wake = wake
        self._tasks: dict[str, tuple[_Address, asyncio.Task[None]]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def sync(self, base: BaseKey, pods: Iterable[Pod], token: str) -> None:
        """Watch exactly these pods of a base."""
        wanted = {pod.uid: _Address(base, pod.ip, token) for pod in pods if pod.ip is not None and not pod.is_leaving}
        for uid, (address, task) in list(self._tasks.items()):
            if address.base == base and wanted.get(uid) != address:
                task.cancel()
                del self._tasks[uid]
        for uid, address in wanted.items():
            if uid not in self._tasks:
                self._tasks[uid] = (address, asyncio.create_task(self._follow(address)))

    async def close(self) -> None:
        """End all polls."""
        tasks = [task for _, task in self._tasks.values()]
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, address: _Address) -> None:
        seen: tuple[str, int] | None = None
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                after = seen[1] if seen is not None else None
                state = await self._client.changed_state(address.ip, address.token, after=after)
            except AdminError as error:
                if seen is not None:
                    logger.info("lost sight of a pod of %s/%s: %s", *address.base, error)
                    self._wake(address.base)
                seen = None
                await asyncio.sleep(delay)
                delay = min(delay * 2, MAX_RETRY_SECONDS)
                continue
            delay = FIRST_RETRY_SECONDS
            is_news = (state.boot_id, state.generation) != seen
            if is_news:
                seen = (state.boot_id, state.generation)
                self._wake(address.base)
            await asyncio.sleep(NEWS_SECONDS if is_news else IDLE_SECONDS)
