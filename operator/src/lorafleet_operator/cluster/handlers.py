"""kopf watches; its handlers do one thing: take the object into the store and wake the base it belongs to."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, Final

import aiohttp
import kopf
from kubernetes.aio.client import Configuration

from lorafleet_common.kube.client import SERVICE_ACCOUNT
from lorafleet_common.paths import Json, version_of
from lorafleet_common.supervise import end, to_its_end
from lorafleet_contract.names import GROUP, LABEL_BASE, VERSION
from lorafleet_operator.cluster.collect import base_key_of, rivals_of
from lorafleet_operator.cluster.freshness import WATCH_SECONDS, Freshness
from lorafleet_operator.cluster.scope import Scope
from lorafleet_operator.cluster.store import Kind, Store
from lorafleet_operator.decide.views import BaseKey
from lorafleet_operator.errors import WatchEnded, WatchSilent

logger = logging.getLogger(__name__)
KOPF: Final = str(Path(kopf.__file__).parent)
ERROR_BACKOFFS: Final = (0.2, 0.5, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0)
"""Seconds between attempts at a request; after these kopf begins the watch anew."""


class EventSink:
    """Takes in what watches tell."""

    def __init__(self, store: Store, wake: Callable[[BaseKey], None]) -> None:
        self._store = store
        self._wake = wake

    def take(self, kind: Kind, event_type: str | None, body: Json) -> None:
        """Take in one event; `event_type` is None for objects of the initial list."""
        if event_type == "DELETED":
            self._store.remove(kind, body["metadata"]["uid"], version_of(body))
            is_news = True
        else:
            is_news = self._store.put(kind, body)
        if not is_news:
            return
        if (key := base_key_of(kind, body)) is not None:
            self._wake(key)
        if kind is not Kind.POD:
            self.wake_rivals(body)

    def wake_rivals(self, body: Json) -> None:
        """Wake the bases of all resources with the same served name: the name may have become free, or been claimed."""
        for key in rivals_of(self._store, body):
            self._wake(key)


def registry_of(
    sink: EventSink,
    connection: Callable[[], kopf.ConnectionInfo],
    freshness: Freshness,
    sessions: list[aiohttp.ClientSession],
) -> kopf.OperatorRegistry:
    """Return a registry whose handlers pass events to the sink, over connections that tell of watches that begin.

    `sessions` gets what is to be closed at the end: kopf does so unless it is cancelled early.
    """
    registry = kopf.OperatorRegistry()

    async def login(**_: Any) -> kopf.AiohttpSession:
        info = await asyncio.to_thread(connection)
        context = await asyncio.to_thread(info.as_ssl_context)
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=context),
            headers=info.as_http_headers(),
            trace_configs=[freshness.trace()],
        )
        sessions.append(session)
        return kopf.AiohttpSession(server=info.server, aiohttp_session=session)

    # kopf writes what a handler returns into status, hence None
    def taker(kind: Kind) -> Callable[..., Awaitable[None]]:
        async def take(event: Any, **_: Any) -> None:
            sink.take(kind, event["type"], dict(event["object"]))

        return take

    kopf.on.login(registry=registry)(login)
    for kind in (Kind.BASE, Kind.ADAPTER):
        kopf.on.event(GROUP, VERSION, kind, id=kind, registry=registry)(taker(kind))
    kopf.on.event("", "v1", Kind.POD, labels={LABEL_BASE: kopf.PRESENT}, registry=registry)(taker(Kind.POD))
    return registry


def settings_of() -> kopf.OperatorSettings:
    """Return settings with which kopf watches and writes nothing."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.watching.label_selectors["pods"] = LABEL_BASE
    settings.watching.server_timeout = WATCH_SECONDS  # an int: the API server refuses 60.0
    settings.watching.client_timeout = WATCH_SECONDS + 15
    settings.watching.connect_timeout = 15
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = ERROR_BACKOFFS
    settings.persistence.finalizer = f"{GROUP}/unused"
    settings.queueing.exit_timeout = 0.1  # handlers only take in: there is nothing to wait for at the end
    settings.process.ultimate_exiting_timeout = None  # the kubelet kills what does not end
    return settings


def connection_of(configuration: Configuration) -> kopf.ConnectionInfo:
    """Return how kopf reaches the API server; the token is read anew each time it asks."""
    token_file = SERVICE_ACCOUNT / "token"
    token: str | None = None
    if configuration.host is not None and token_file.is_file():
        token = token_file.read_text().strip()
    else:
        header = str(configuration.api_key.get("BearerToken") or "")
        token = header.split(" ", 1)[-1] or None
    return kopf.ConnectionInfo(
        server=str(configuration.host),
        ca_path=_path(configuration.ssl_ca_cert),
        insecure=None if configuration.verify_ssl else True,
        scheme="Bearer" if token else None,
        token=token,
        certificate_path=_path(configuration.cert_file),
        private_key_path=_path(configuration.key_file),
    )


def _path(name: str | None) -> Path | None:
    return Path(name) if name else None


async def watch(
    scope: Scope,
    sink: EventSink,
    configuration: Configuration,
    identity: str,
    *,
    freshness: Freshness,
    retake_signals: Callable[[], None],
) -> None:
    """Watch until cancelled; where a watch does not run, or another set of namespaces may be watched, all are begun again.

    kopf ends all watches when one is refused: a namespace that is refused is left out until it may be watched. It looks
    once which kinds there are, and never watches one that was not there yet. It takes SIGTERM and SIGINT for
    itself; `retake_signals` takes them back.

    Raises:
        WatchEnded: kopf gave up.
    """
    while True:
        namespaces = scope.watchable
        freshness.begin(namespaces)
        if not namespaces:
            await scope.wait_changed()
            continue
        try:
            await _watch(scope, sink, configuration, identity, freshness=freshness, retake_signals=retake_signals)
        except WatchSilent as error:
            logger.error("%s; all watches are begun again", error)
        except Exception as error:
            if scope.watchable == namespaces:
                raise WatchEnded(f"the watches ended: {type(error).__name__}: {error}") from error
        else:
            if scope.watchable == namespaces:
                raise WatchEnded("the watches ended")


async def _watch(
    scope: Scope,
    sink: EventSink,
    configuration: Configuration,
    identity: str,
    *,
    freshness: Freshness,
    retake_signals: Callable[[], None],
) -> None:
    """Watch what may be watched now, until something ends or this has changed.

    Raises:
        WatchSilent: a watch does not run.
    """
    namespaces = [namespace for namespace in scope.watchable if namespace is not None]
    sessions: list[aiohttp.ClientSession] = []
    beginning = asyncio.ensure_future(
        kopf.spawn_tasks(
            registry=registry_of(sink, lambda: connection_of(configuration), freshness, sessions),
            settings=settings_of(),
            standalone=True,
            identity=identity,  # else kopf asks for a user name, and a container's user may have none
            clusterwide=not namespaces,
            namespaces=namespaces,
        )
    )
    tasks = [asyncio.create_task(freshness.check()), asyncio.create_task(scope.wait_changed())]
    try:
        tasks += await asyncio.shield(beginning)
        retake_signals()
        # not kopf.run_tasks: at its end it cancels every younger task of the loop, which are ours
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await to_its_end(_end(beginning, tasks, sessions))


async def _end(
    beginning: "asyncio.Future[Collection[asyncio.Task[Any]]]",
    tasks: Collection[asyncio.Task[Any]],
    sessions: Collection[aiohttp.ClientSession],
) -> None:
    """End all that has begun, so that neither tasks nor connections are left of it."""
    with contextlib.suppress(Exception):  # it has been raised where it was begun
        tasks = {*tasks, *await beginning}
    await end(tasks)
    while strays := [task for task in asyncio.all_tasks() if _is_of_kopf(task)]:
        await end(strays)
    for session in sessions:
        await session.close()


def _is_of_kopf(task: asyncio.Task[Any]) -> bool:
    """Whether it is a request for what kinds there are: cancelled meanwhile, kopf leaves them, to wait for ever for a login."""
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and code.co_filename.startswith(KOPF)
