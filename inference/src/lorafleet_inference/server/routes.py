"""`GET /v1/routes` on the public port: what a gateway needs to know of this pod, as a long poll."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from lorafleet_contract.admin import RevisionRef
from lorafleet_contract.routes import Routes
from lorafleet_inference.server.pod import Pod
from lorafleet_inference.server.state import Phase

MAX_WAIT_SECONDS = 60.0
After = Annotated[int | None, Query(ge=0)]
Since = Annotated[int | None, Query(ge=0)]
WaitSeconds = Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS)]


def routes_router(pod: Pod) -> APIRouter:
    """Return the route."""
    router = APIRouter()

    @router.get("/v1/routes")
    async def routes(
        after: After = None, boot_id: str = "", wait_seconds: WaitSeconds = 0.0, since: Since = None
    ) -> Response:
        manager = pod.manager
        await manager.changes.wait(after, wait_seconds)
        is_boot = boot_id == manager.boot_id
        is_known = is_boot and after == manager.changes.number
        document = routes_of(pod, with_adapters=not is_known, since=since if is_boot else None)
        return Response(document.model_dump_json(by_alias=True, exclude_none=True), media_type="application/json")

    return router


def routes_of(pod: Pod, *, with_adapters: bool = True, since: int | None = None) -> Routes:
    """Return the document as it is now, on request without what whoever asks has, or what has changed since a generation.

    Raises:
        EngineNotReady: the base model is not loaded yet.
    """
    manager, stats = pod.manager, pod.engine.stats
    difference = manager.shown.routes_since(since) if with_adapters else None
    gone = difference.gone if difference is not None else ()
    return Routes(
        boot_id=manager.boot_id,
        generation=manager.changes.number,
        base=pod.config.served_name,
        ready=manager.ready and pod.state.phase is Phase.SERVING,
        draining=pod.state.is_leaving,
        max_model_len=pod.facts.max_model_len,
        adapters=manager.shown.routes(difference) if with_adapters else None,
        since=difference.since if difference is not None else None,
        removed=[RevisionRef(name=key.name, revision=key.revision) for key in gone],
        num_running=stats.num_running if stats is not None else 0,
        num_waiting=stats.num_waiting if stats is not None else 0,
    )
