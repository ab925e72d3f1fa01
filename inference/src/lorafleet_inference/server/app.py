"""One pod's life: ports open, the base model here, engine up, requests answered, drained, ended.

The order at the end: not ready at once; for a grace time new requests are still answered, because whoever routes has
not heard yet; then they are refused while running ones end; then the engine and the ports close.
"""

import asyncio
import hashlib
import logging
import os
import uuid
from collections.abc import Coroutine
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from lorafleet_common.collector import pass_over_what_is_there
from lorafleet_common.errors import ConfigError
from lorafleet_common.keys.file import following, open_guard
from lorafleet_common.keys.guard import Guard
from lorafleet_common.signals import StopSignals
from lorafleet_common.sockets import bind, connections_with_files
from lorafleet_common.tracing import Tracing, open_tracing
from lorafleet_inference import metrics
from lorafleet_inference.adapters.manager import AdapterManager
from lorafleet_inference.base_folder import NamedBase
from lorafleet_inference.config import ServerConfig
from lorafleet_inference.engine.client import EngineClient
from lorafleet_inference.engine.engine_program import RunEngine, run_program
from lorafleet_inference.errors import RequestError
from lorafleet_inference.server.admin import admin_app
from lorafleet_inference.server.admission import Admission
from lorafleet_inference.server.answer_room import AnswerRoom
from lorafleet_inference.server.connections import ConnectionLimits
from lorafleet_inference.server.pod import Pod
from lorafleet_inference.server.ports import Port, Ports
from lorafleet_inference.server.public import public_app
from lorafleet_inference.server.reading import Readers
from lorafleet_inference.server.starting import Download, bring, early_admin, early_public
from lorafleet_inference.server.state import Phase, PodState
from lorafleet_inference.text.files import TextFileError
from lorafleet_inference.text.tokenizer import Text

logger = logging.getLogger(__name__)
LOST_ENGINE_GRACE_SECONDS = 1.0
"""Time for the last errors to reach clients, and for a probe to see /health 503, before the process ends."""


async def serve(config: ServerConfig, base: NamedBase, run_engine: RunEngine = run_program) -> int:
    """Run one pod until SIGTERM or SIGINT, or until its engine is lost; return the exit status. Its ports are open before
    the base model is here.

    `run_engine`: what starts the engine process.

    Raises:
        ConfigError: an option turned out to be impossible, or the base model is not to be had.
    """
    token_hash = _token_hash(config)
    metrics.bind_base(config.served_name)
    guard, keys_file = open_guard(config.keys_file, metrics.KEYS, option="--keys-file")
    tracing = open_tracing(os.environ, service="lorafleet-inference")
    admin_host = config.admin_host if token_hash is not None else "127.0.0.1"
    with (
        bind(config.host, config.port, option="--port") as public_socket,
        bind(admin_host, config.admin_port, option="--admin-port") as admin_socket,
        closing(Readers()) as readers,
        following(keys_file),
    ):
        stop = StopSignals()
        most = connections_with_files(config.max_connections)
        limits = ConnectionLimits(most, config.client_timeout_seconds)
        download = Download()
        early = early_public(download, pod_name=config.pod_name, tracing=tracing)
        ports = Ports(Port(public_socket, early, limits), Port(admin_socket, early_admin(download, token_hash), limits))
        logger.info("listening on %s (admin %s)", ports.public.url, ports.admin.url)
        try:
            engine_config = await bring(base, download, stop, ports.lost)
            if engine_config is None:
                ports.say_lost()
                return 0 if stop.told.is_set() else 1
            config = replace(config, engine=engine_config)
            return await _serve(config, Surroundings(readers, guard, tracing, token_hash, run_engine), ports, stop)
        finally:
            await ports.close()
            await asyncio.to_thread(tracing.close)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What there is before the base model."""

    readers: Readers
    guard: Guard
    tracing: Tracing
    token_hash: bytes | None
    run_engine: RunEngine


async def _serve(config: ServerConfig, around: Surroundings, ports: Ports, stop: StopSignals) -> int:
    """Run the engine of a base that is in a folder."""
    try:
        text = Text.load(Path(config.engine.model))
    except TextFileError as error:
        raise ConfigError("--model", str(error)) from error
    try:
        engine = await EngineClient.start(config.engine, around.run_engine)
        try:
            manager = AdapterManager(engine, config, boot_id=uuid.uuid4().hex, judge=text.judge)
            state = PodState(manager.changes.bump)
            pod = Pod(
                config,
                engine,
                manager,
                text,
                state,
                Admission(config.max_waiting_requests),
                AnswerRoom(config.answer_memory_bytes),
                around.readers,
                around.guard,
                around.tracing,
            )
            ports.public.app, ports.admin.app = public_app(pod), admin_app(pod, around.token_hash)
            return await _run(pod, ports, stop)
        finally:
            await engine.close()
    finally:
        text.close()


async def _run(pod: Pod, ports: Ports, stop: StopSignals) -> int:
    collector = metrics.EngineCollector(lambda: pod.engine.stats, lambda: pod.engine.facts, pod.manager.shown.in_memory)
    metrics.REGISTRY.register(collector)
    pod.engine.subscribe(collector.observe)
    life = asyncio.ensure_future(_live(pod, _start(pod, ports.public.url), stop))
    lost = asyncio.ensure_future(_lost(pod))
    try:
        await asyncio.wait((life, lost, *ports.lost), return_when=asyncio.FIRST_COMPLETED)
        if life.done():
            life.result()
            return 0
        ports.say_lost()
        if lost.done() and pod.engine.config_error is not None:
            raise pod.engine.config_error
        if lost.done():
            logger.error("the engine was lost: %s", pod.state.failure)
            await asyncio.sleep(LOST_ENGINE_GRACE_SECONDS)
        return 1
    finally:
        life.cancel()
        lost.cancel()
        ports.public.close()
        ports.admin.close()
        await asyncio.gather(life, lost, *ports.lost, return_exceptions=True)
        await pod.manager.close()
        metrics.REGISTRY.unregister(collector)


async def _live(pod: Pod, start: Coroutine[None, None, None], stop: StopSignals) -> None:
    """Bring the pod up, wait for the signal, drain."""
    stopping = asyncio.ensure_future(stop.told.wait())
    starting = asyncio.ensure_future(start)
    try:
        await asyncio.wait((stopping, starting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await stopping
            await _drain(pod, stop)
    finally:
        starting.cancel()
        stopping.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)


async def _start(pod: Pod, url: str) -> None:
    config = pod.config
    logger.info("loading %s", config.served_name)
    try:
        ready = await pod.engine.wait_ready()
    except RequestError:
        await asyncio.Future()  # the watch over the engine ends the process, with the reason
        raise
    await pod.manager.start()
    pass_over_what_is_there()
    pod.state.phase = Phase.SERVING
    facts = ready.facts
    logger.info("serving %s (%s, %s, %s)", config.served_name, facts.architecture, facts.dtype, facts.device)
    example = f'{{"model": "{config.served_name}", "prompt": "Hello", "max_tokens": 16}}'
    key = " -H 'authorization: Bearer KEY'" if pod.guard.asks else ""
    logger.info("try: curl %s/v1/completions%s -H 'content-type: application/json' -d '%s'", url, key, example)


async def _lost(pod: Pod) -> None:
    """Return when the engine is lost, having marked the pod."""
    pod.state.failure = await asyncio.shield(pod.engine.failed)
    pod.state.phase = Phase.FAILED


async def _drain(pod: Pod, stop: StopSignals) -> None:
    logger.info("told to end: draining %d requests", pod.state.num_in_flight)
    grace_seconds = pod.config.drain_grace_seconds if stop.by_router else 0.0
    draining = asyncio.ensure_future(
        pod.state.drain(grace_seconds=grace_seconds, timeout_seconds=pod.config.drain_timeout_seconds)
    )
    again = asyncio.ensure_future(stop.told_again.wait())
    await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
    draining.cancel()
    again.cancel()
    if pod.state.num_in_flight:
        logger.warning("%d requests did not end in time and are cut", pod.state.num_in_flight)


def _token_hash(config: ServerConfig) -> bytes | None:
    path = config.admin_token_file
    if path is None:
        return bytes.fromhex(config.admin_token_sha256) if config.admin_token_sha256 is not None else None
    if config.admin_token_sha256 is not None:
        raise ConfigError("--admin-token-file", "does not go with --admin-token-sha256")
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise ConfigError("--admin-token-file", f"cannot be read: {error.strerror}") from error
    if not token:
        raise ConfigError("--admin-token-file", "is empty")
    return hashlib.sha256(token.encode()).digest()
