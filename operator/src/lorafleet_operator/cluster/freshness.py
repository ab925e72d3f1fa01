"""Whether the watches run: each is heard to begin, at least once a minute, or it does not run."""

import asyncio
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Final

import aiohttp

from lorafleet_common.clock import monotonic
from lorafleet_common.paths import collection
from lorafleet_contract.names import GROUP, VERSION
from lorafleet_operator import metrics
from lorafleet_operator.cluster.store import Kind
from lorafleet_operator.errors import WatchSilent

WATCH_SECONDS: Final = 60
"""The API server ends a watch after this; the next one begins where it ended."""
START_SECONDS: Final = 20.0
"""Each watch is heard to begin within this time after the start."""
MAX_AGE_SECONDS: Final = 2.5 * WATCH_SECONDS


Watched = tuple[Kind, str | None]
"""A kind, and the namespace in which it is watched; None is all of them."""


def watch_paths(namespaces: Collection[str | None]) -> dict[str, Watched]:
    """Return the paths of the API server that are watched."""
    versions = {Kind.BASE: f"{GROUP}/{VERSION}", Kind.ADAPTER: f"{GROUP}/{VERSION}", Kind.POD: "v1"}
    return {
        collection(version, kind, namespace): (kind, namespace)
        for kind, version in versions.items()
        for namespace in namespaces
    }


class Freshness:
    """When each watch was last known to run."""

    def __init__(
        self, refused: Callable[[str, str], None] = lambda _, __: None, *, start_seconds: float = START_SECONDS
    ) -> None:
        self._refused = refused
        """Told a namespace and why, when the API server refuses to list or watch something in it."""
        self._paths: dict[str, Watched] = {}
        self._start_seconds = start_seconds
        self._began = monotonic()
        self._heard: dict[str, float] = {}
        self._last: dict[str, float] = {}
        """The same over all beginnings."""

    def begin(self, namespaces: Collection[str | None]) -> None:
        """The watches are begun, all of them anew, of what may be watched now; None is all namespaces."""
        self._paths = watch_paths(namespaces)
        self._began = monotonic()
        self._heard.clear()
        self._last = {path: self._last.get(path, self._began) for path in self._paths}

    def trace(self) -> aiohttp.TraceConfig:
        """Return what tells of watches that begin, for the session that they use."""
        trace = aiohttp.TraceConfig()

        async def answered(
            _: aiohttp.ClientSession, __: SimpleNamespace, params: aiohttp.TraceRequestEndParams
        ) -> None:
            path, status = params.url.path, params.response.status
            if status == 200 and "watch" in params.url.query:
                self.heard(path)
            elif status in (403, 404) and path in self._paths:
                kind, namespace = self._paths[path]
                if namespace is not None:
                    self._refused(namespace, f"{status} for the watch of its {kind}")

        trace.on_request_end.append(answered)
        return trace

    def heard(self, path: str) -> None:
        """A watch runs now."""
        if path in self._paths:
            self._heard[path] = self._last[path] = monotonic()
            metrics.WATCH_TIME.labels(kind=self._paths[path][0]).set_to_current_time()

    def oldest(self) -> tuple[str, float]:
        """Return the watch that was not heard of for the longest time, and that time in seconds; 0 where none is due."""
        if not self._last:
            return "", 0.0
        path = min(self._last, key=lambda path: self._last[path])
        return path, monotonic() - self._last[path]

    def problem(self) -> str | None:
        """Return which of the watches that were begun last does not run, in words, or None."""
        now = monotonic()
        for path in self._paths:
            heard = self._heard.get(path)
            if heard is None and now - self._began > self._start_seconds:
                return f"the watch of {path} has not begun in {now - self._began:.0f} s"
            if heard is not None and now - heard > MAX_AGE_SECONDS:
                return f"the watch of {path} was not heard of for {now - heard:.0f} s"
        return None

    async def check(self) -> None:
        """Look again and again.

        Raises:
            WatchSilent: a watch does not run.
        """
        while True:
            await asyncio.sleep(min(self._start_seconds / 4, 5.0))
            if (problem := self.problem()) is not None:
                raise WatchSilent(problem)
