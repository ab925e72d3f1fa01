"""The `Allow` header of a 405. Starlette tells the methods of the first route of a path only, and several may share one."""

from collections.abc import Iterable, Iterator

from starlette.requests import Request
from starlette.routing import BaseRoute, Match, Route


def all_routes(routes: Iterable[BaseRoute]) -> Iterator[Route]:
    """Yield routes, also those of included routers."""
    for route in routes:
        if isinstance(route, Route):
            yield route
        else:
            yield from all_routes(route.original_router.routes)  # type: ignore[attr-defined]


def allow(request: Request) -> dict[str, str]:
    """Return the header that names every method of the request's path."""
    matching = (one for one in all_routes(request.app.routes) if one.matches(request.scope)[0] is not Match.NONE)
    return {"allow": ", ".join(sorted({method for route in matching for method in route.methods or ()}))}
