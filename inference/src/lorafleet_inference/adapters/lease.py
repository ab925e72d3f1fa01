"""The right of one request to an adapter revision: as long as it lasts, the revision is not released."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from lorafleet_inference.adapters.sources.base import Kind
from lorafleet_inference.engine.messages import AdapterKey
from lorafleet_inference.engine.vocabulary import Vocabulary
from lorafleet_inference.errors import AdapterFailed


class Lease:
    """An async context manager around all that a request does with the adapter; entered and left by one task."""

    def __init__(
        self,
        key: AdapterKey | None,
        directory: Path | None = None,
        on_end: "Callable[[Lease], None] | None" = None,
        vocabulary: Vocabulary | None = None,
        *,
        name: str | None = None,
        kinds: frozenset[Kind] = frozenset(),
    ) -> None:
        self.name = key.name if name is None and key is not None else name
        """Of the adapter, as answers show it: of a merge, those of its parts."""
        self.kinds = kinds
        """Of the sources that its content comes from."""
        self.key = key
        """None for the base model."""
        self.directory = directory
        """Where the adapter's files lie; None for the base model."""
        self.vocabulary = vocabulary
        """Token ids that the adapter knows; None for the base model."""
        self.num_tokens = 0
        """Of the prompts and answers for which it was taken, so far."""
        self._on_end = on_end
        self._task: asyncio.Task[object] | None = None
        self._num_cancelling = 0
        self._is_revoked = False

    def revoke(self) -> None:
        """End the request: it took longer than the adapter could wait to be unloaded."""
        if not self._is_revoked and self._task is not None:
            self._is_revoked = True
            self._task.cancel()

    def count(self, num_tokens: int) -> None:
        """Take note of tokens of a prompt or an answer."""
        self.num_tokens += num_tokens

    def end(self) -> None:
        """Give the adapter back; for a lease that is not entered."""
        if self._on_end is not None:
            self._on_end(self)
            self._on_end = None

    async def __aenter__(self) -> Self:
        """Begin."""
        self._task = asyncio.current_task()
        self._num_cancelling = self._task.cancelling() if self._task is not None else 0
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Give the adapter back.

        Raises:
            AdapterFailed: the lease was revoked.
        """
        task, self._task = self._task, None
        self.end()
        if not self._is_revoked or task is None:
            return
        ours_alone = task.uncancel() <= self._num_cancelling
        if ours_alone and isinstance(error, asyncio.CancelledError) and self.key is not None:
            raise AdapterFailed(f"{self.name} was unloaded before this request had ended") from error
