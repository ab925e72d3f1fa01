"""Pushes catalogues to pods: bounded, idempotent, and what goes wrong with one pod stays with it."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from lorafleet_contract.admin import CatalogueWrite
from lorafleet_operator.act.admin_client import AdminClient
from lorafleet_operator.act.pod_watch import PodWatches
from lorafleet_operator.decide.diff import PodChange, Removal
from lorafleet_operator.decide.views import BaseKey, Pod
from lorafleet_operator.errors import AdminError

logger = logging.getLogger(__name__)
MAX_PARALLEL: Final = 16
"""Writes at the same time to the pods of one base."""
WAIT_SECONDS: Final = 1.0
"""How long a pass waits for pods to take what they are told; slower ones wake their base when they have."""
STRAGGLER_RETRY_SECONDS: Final = 1.0
NOTHING: Final = Removal(60.0, ())


@dataclass(frozen=True, slots=True)
class Pushed:
    """What became of the writes of a pass."""

    num_taken: int = 0
    num_failed: int = 0
    num_pending: int = 0
    """Under way when the pass went on."""


class Executor:
    """Writes to pods; at most one a pod at a time."""

    def __init__(self, client: AdminClient, watches: PodWatches, wake: Callable[[BaseKey, float], None]) -> None:
        self._client = client
        self._watches = watches
        self._wake = wake
        self.generation = 0
        """The highest that was given to a write."""
        self._slots: dict[BaseKey, asyncio.Semaphore] = {}
        self._writing: dict[str, asyncio.Task[bool]] = {}
        self._stragglers: set[asyncio.Task[bool]] = set()

    def is_writing(self, pods: Iterable[Pod]) -> bool:
        """Whether a write to one of these pods is under way."""
        return any(pod.uid in self._writing for pod in pods)

    async def execute(self, base: BaseKey, changes: Sequence[PodChange], token: str, *, fence: int) -> Pushed:
        """Tell each pod its change. One that is still busy with an earlier write is told when that has ended."""
        tasks = []
        for change in changes:
            if change.pod.uid not in self._writing:
                task = asyncio.create_task(self._write(base, change, token, fence))
                self._writing[change.pod.uid] = task
                task.add_done_callback(partial(self._ended, base, change.pod.uid))
                tasks.append(task)
        num_busy = len(changes) - len(tasks)
        if not tasks:
            return Pushed(num_pending=num_busy)
        done, pending = await asyncio.wait(tasks, timeout=WAIT_SECONDS)
        self._stragglers |= pending
        for change in changes:
            if self._writing.get(change.pod.uid) in pending:
                self._watches.doubt(change.pod.uid)
        num_taken = sum(task.result() for task in done)
        return Pushed(num_taken, len(done) - num_taken, len(pending) + num_busy)

    def forget(self, base: BaseKey) -> None:
        """A base is gone."""
        self._slots.pop(base, None)

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._writing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, base: BaseKey, uid: str, task: asyncio.Task[bool]) -> None:
        del self._writing[uid]
        if task in self._stragglers:
            self._stragglers.discard(task)
            if not task.cancelled():
                self._wake(base, 0.0 if task.result() else STRAGGLER_RETRY_SECONDS)

    async def _write(self, base: BaseKey, change: PodChange, token: str, fence: int) -> bool:
        """Tell one pod its change; return whether it took all of it."""
        pod = change.pod.pod
        logger.info("pod %s: %s", pod.name, change.why)
        try:
            async with self._slots.setdefault(base, asyncio.Semaphore(MAX_PARALLEL)):
                for write in self._writes(change, fence):
                    assert pod.ip is not None
                    known = self._watches.known(pod.uid)
                    self._watches.heard(pod.uid, await self._client.write(pod.ip, token, write, known))
        except AdminError as error:
            logger.warning("pod %s did not take its catalogue: %s", pod.name, error)
            self._watches.doubt(pod.uid)
            return False
        except Exception:
            logger.exception("pod %s could not be told its catalogue", pod.name)
            self._watches.doubt(pod.uid)
            return False
        return True

    def _writes(self, change: PodChange, fence: int) -> Iterable[CatalogueWrite]:
        for index, removal in enumerate(change.removals or (NOTHING,)):
            self.generation += 1
            yield CatalogueWrite(
                fence=fence,
                generation=self.generation,
                adapters=list(change.entries) if index == 0 else [],
                removed=list(removal.revisions),
                drain_timeout_seconds=removal.drain_timeout_seconds,
            )
