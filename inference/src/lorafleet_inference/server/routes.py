"""`GET /v1/routes` on the public port: what a gateway needs to know of this pod, as a long poll."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from lorafleet_contract.admin import Routes
from lorafleet_inference.server.pod import Pod
from lorafleet_inference.server.state import Phase

MAX_WAIT_SECONDS = 60.0
After = Annotated[int | None, Query(ge=0)]
WaitSeconds = Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS)]


def routes_router(pod: Pod) -> APIRouter:
    """Return the route."""
    router = APIRouter()

    @router.get("/v1/routes")
    async def routes(after: After = None, wait_seconds: WaitSeconds = 0.0) -> Response:
        await pod.manager.changes.wait(after, wait_seconds)
        return Response(routes_of(pod).model_dump_json(by_alias=True), media_type="application/json")

    return router


def routes_of(pod: Pod) -> Routes:
    """Return the document as it is now.

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
        adapters=manager.routes(),
        num_running=stats.num_running if stats is not None else 0,
        num_waiting=stats.num_waiting if stats is not None else 0,
    )
