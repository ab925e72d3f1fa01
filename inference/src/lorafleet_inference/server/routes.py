"""`GET /v1/routes` on the public port: what a gateway needs to know of this pod, as a long poll."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from lorafleet_contract.routes import Routes
from lorafleet_inference.server.pod import Pod
from lorafleet_inference.server.state import Phase

MAX_WAIT_SECONDS = 60.0
After = Annotated[int | None, Query(ge=0)]
WaitSeconds = Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS)]


def routes_router(pod: Pod) -> APIRouter:
    """Return the route."""
    router = APIRouter()

    @router.get("/v1/routes")
    async def routes(after: After = None, boot_id: str = "", wait_seconds: WaitSeconds = 0.0) -> Response:
        manager = pod.manager
        await manager.changes.wait(after, wait_seconds)
        is_known = boot_id == manager.boot_id and after == manager.changes.number
        document = routes_of(pod, with_adapters=not is_known)
        return Response(document.model_dump_json(by_alias=True, exclude_none=True), media_type="application/json")

    return router


def routes_of(pod: Pod, *, with_adapters: bool = True) -> Routes:
    """Return the document as it is now, on request without what whoever asks has.

    Raises:
        EngineNotReady: the base model is not loaded yet.
    """
    manager, stats = pod.manager, pod.engine.stats
    return Routes(
        boot_id=manager.boot_id,
        generation=manager.changes.number,
        base=pod.config.served_name,
        ready=manager.ready and pod.state.phase is Phase.SERVING,
        draining=pod.state.is_leaving,
        max_model_len=pod.facts.max_model_len,
        adapters=manager.routes() if with_adapters else None,
        num_running=stats.num_running if stats is not None else 0,
        num_waiting=stats.num_waiting if stats is not None else 0,
    )
