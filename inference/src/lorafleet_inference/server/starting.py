"""A pod whose base model is on its way: what its ports answer until there is an engine, and the download that they tell of."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any, TypeVar

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lorafleet_common.signals import StopSignals
from lorafleet_common.tracing import Tracing
from lorafleet_contract.admin import AdminError, HostReady, StartProgress, StartStep
from lorafleet_contract.lorax import ADAPTER_PATHS, INFO
from lorafleet_contract.reasons import Reason
from lorafleet_inference import metrics
from lorafleet_inference.base_folder import NamedBase
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.errors import EngineNotReady
from lorafleet_inference.server.admin import TokenGate
from lorafleet_inference.server.http import error_response, json_response, openai_error
from lorafleet_inference.server.lorax import lorax_error
from lorafleet_inference.server.middleware import AnswerHeaders
from lorafleet_inference.server.state import RETRY_SECONDS, Phase
from lorafleet_inference.server.wire import Health, Version

logger = logging.getLogger(__name__)
T = TypeVar("T")
NOT_HERE = "the base model is not here yet"
LEAVE_SECONDS = 3.0
"""So long a download that is given up may take to say so to the processes that wait for it."""


class GivenUp(Exception):
    """The process was told to end while it downloaded."""


class Download:
    """How far the files of the base are; told by the thread that brings them, read by the ports."""

    def __init__(self) -> None:
        self._percent: int | None = None
        self._is_given_up = False

    @property
    def progress(self) -> StartProgress | None:
        """None before it is known how much there is to download."""
        return None if self._percent is None else StartProgress(step=StartStep.DOWNLOADING, percent=self._percent)

    def tell(self, percent: int) -> None:
        """Take in how far it is.

        Raises:
            GivenUp: nobody wants it any more.
        """
        if self._is_given_up:
            raise GivenUp
        self._percent = percent

    def give_up(self) -> None:
        """Have the next `tell` end it."""
        self._is_given_up = True


async def bring(
    base: NamedBase, download: Download, stop: StopSignals, lost: Iterable["asyncio.Future[None]"]
) -> EngineConfig | None:
    """As `brought`; None where the process was told to end first, or one of the ports was lost.

    Raises:
        ConfigError: the model cannot be had.
    """
    told = asyncio.ensure_future(stop.told.wait())
    ends: list[asyncio.Future[Any]] = [told, *lost]
    stopping = asyncio.ensure_future(asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED))
    try:
        return await brought(base, download, stopping)
    finally:
        stopping.cancel()
        told.cancel()
        await asyncio.gather(stopping, told, return_exceptions=True)


async def brought(base: NamedBase, download: Download, stopping: "asyncio.Future[Any]") -> EngineConfig | None:
    """Return the configuration of the engine with the models in folders; None where `stopping` was done first.

    Raises:
        ConfigError: the model cannot be had.
    """
    if base.is_here:
        return base.brought()
    began = time.monotonic()
    coming = _in_daemon(lambda: base.brought(download.tell))
    await asyncio.wait((coming, stopping), return_when=asyncio.FIRST_COMPLETED)
    if coming.done():
        config = coming.result()
        metrics.DOWNLOAD_SECONDS.of().set(time.monotonic() - began)
        return config
    logger.info("the base model is not waited for any longer")
    download.give_up()
    await asyncio.wait((coming,), timeout=LEAVE_SECONDS)
    if coming.done():
        coming.exception()
    return None


def early_public(download: Download, *, pod_name: str, tracing: Tracing) -> ASGIApp:
    """Return what the public port answers meanwhile: alive, not ready."""

    async def health(_: Request) -> Response:
        return json_response(Health("ok"))

    async def ping(_: Request) -> Response:
        return Response()

    async def version(_: Request) -> Response:
        return json_response(Version(metadata.version("lorafleet-inference")))

    async def ready(_: Request) -> Response:
        so_far = f": {start.words}" if (start := download.progress) is not None else ""
        reason = f"the pod is {Phase.STARTING}{so_far}"
        return json_response(Health("not ready", reason), status=503, headers={"retry-after": "2"})

    async def metrics_text(_: Request) -> Response:
        metrics.READY.of().set(False)
        return Response(generate_latest(metrics.REGISTRY), media_type=CONTENT_TYPE_LATEST)

    async def not_here(scope: Scope, receive: Receive, send: Send) -> None:
        shape = lorax_error if scope["path"] in ADAPTER_PATHS | {INFO} else openai_error
        refused = error_response(EngineNotReady(NOT_HERE, retry_after_seconds=RETRY_SECONDS), shape=shape)
        await refused(scope, receive, send)

    app = Starlette(
        routes=[
            Route("/", health),
            Route("/health", health),
            Route("/ping", ping, methods=["GET", "POST"]),
            Route("/version", version),
            Route("/ready", ready),
            Route("/metrics", metrics_text),
            Mount("/", not_here),
        ]
    )
    return AnswerHeaders(app, pod_name=pod_name, tracing=tracing)


def early_admin(download: Download, token_hash: bytes | None) -> ASGIApp:
    """Return what the admin port answers meanwhile: 503, and how far the download is."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        refused = AdminError(reason=Reason.PENDING, message=NOT_HERE, retryable=True, start=download.progress)
        answer = Response(refused.model_dump_json(by_alias=True), 503, media_type="application/json")
        await answer(scope, receive, send)

    return app if token_hash is None else TokenGate(app, token_hash=token_hash)


def early_host(download: Download) -> ASGIApp:
    """Return what the port of a further host answers meanwhile."""

    def said() -> str:
        return start.words if (start := download.progress) is not None else NOT_HERE

    async def health(_: Request) -> Response:
        return json_response(Health(said()))

    async def ready(_: Request) -> Response:
        answer = HostReady(status=said(), start=download.progress)
        return Response(answer.model_dump_json(by_alias=True, exclude_none=True), 503, media_type="application/json")

    return Starlette(routes=[Route("/health", health), Route("/ready", ready)])


def _in_daemon(call: Callable[[], T]) -> "asyncio.Future[T]":
    """Call it in a thread that the end of the process does not wait for, as it does for those of executors."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, failed = None, None
        try:
            result = call()
        except Exception as error:  # noqa: BLE001  it is raised where the result is awaited
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=work, name="bring", daemon=True).start()
    return future
