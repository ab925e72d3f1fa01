"""What keeps a pod from coming up, in the words of the scheduler, the kubelet and its containers. Pure, over its status."""

from collections.abc import Iterable
from typing import Any, Final

from lorafleet_contract.admin import PodState
from lorafleet_contract.names import ENGINE_CONTAINER

Json = dict[str, Any]
MAX_LAST_WORDS: Final = 240
MAX_PROBLEM: Final = 600
LOADS: Final = "loads the base model"
WAITS: Final = "waits for its first adapters"
ON_THE_WAY: Final = frozenset({"ContainerCreating", "PodInitializing"})
"""What a waiting container says of one that is coming up, and of one that never will."""


def problem_of(status: Json) -> str:
    """Return why a pod does not come up, or why it ended; empty when nothing is known to be wrong."""
    if status.get("phase") == "Failed":
        return (_joined(status) or _first(_ended(container) for container in _containers(status)))[:MAX_PROBLEM]
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        return _joined(scheduled)[:MAX_PROBLEM]
    return _first(_container_problem(container) for container in _containers(status))[:MAX_PROBLEM]


def stage_of(status: Json) -> str:
    """Return what a pod that is not ready is doing, where nothing is known to be wrong with it; empty when it is ready.

    Its ports are open while it loads, so that only the pod itself can say what it does then.
    """
    if _condition(status, "Ready").get("status") == "True":
        return ""
    if _condition(status, "PodScheduled").get("status") != "True":
        return "waits for a node"
    if not has_begun(status):
        return "its containers are being created: volumes, image"
    return f"{LOADS}, or {WAITS}" if _engine(status).get("started") else LOADS


def stage_by(state: PodState) -> str:
    """Return what a pod that is not ready for Kubernetes is doing, by what it says of itself with its base loaded."""
    if state.draining:
        return "answers what it has begun, and takes nothing new"
    return "is ready, which its readiness probe has not seen yet" if state.ready else WAITS


def has_begun(status: Json) -> bool:
    """Whether the container of the engine runs."""
    return "running" in (_engine(status).get("state") or {})


def is_being_created(status: Json) -> bool:
    """Whether the kubelet is preparing the containers: only its Events say what keeps it."""
    reasons = {((c.get("state") or {}).get("waiting") or {}).get("reason") for c in _containers(status)}
    return bool(reasons & ON_THE_WAY) and not problem_of(status)


def problem_in(events: Iterable[Json]) -> str:
    """Return what the latest of some warnings says."""
    latest = max(events, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""), default={})
    return _joined(latest)[:MAX_PROBLEM]


def _containers(status: Json) -> list[Json]:
    """Init containers first: the engine waits for them."""
    statuses: list[Json] = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    return statuses


def _engine(status: Json) -> Json:
    return next((c for c in _containers(status) if c.get("name") == ENGINE_CONTAINER), {})


def _container_problem(container: Json) -> str:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    if waiting.get("reason") and waiting["reason"] not in ON_THE_WAY:
        said = _joined(waiting)
    elif (state.get("terminated") or {}).get("exitCode", 0) != 0:
        return _named(container, _ended(container))
    else:
        return ""
    last = _ended(container)
    return _named(container, f"{said}; {last}" if last else said)


def _named(container: Json, words: str) -> str:
    name = container.get("name")
    return words if name == ENGINE_CONTAINER else f"container {name}: {words}"


def _ended(container: Json) -> str:
    """How a container ended the last time, with its last words."""
    ends = ((container.get(key) or {}).get("terminated") for key in ("state", "lastState"))
    end = next((end for end in ends if end and end.get("exitCode", 0) != 0), None)
    if end is None:
        return ""
    how = f"ended with {end['exitCode']} ({end.get('reason') or 'Error'})"
    lines = [line.strip() for line in (end.get("message") or "").splitlines() if line.strip()]
    return f"{how}: {lines[-1][-MAX_LAST_WORDS:]}" if lines else how


def _condition(status: Json, kind: str) -> Json:
    conditions: list[Json] = status.get("conditions") or []
    return next((condition for condition in conditions if condition.get("type") == kind), {})


def _joined(said: Json) -> str:
    return ": ".join(part for part in (said.get("reason"), said.get("message")) if part)


def _first(problems: Iterable[str]) -> str:
    return next((problem for problem in problems if problem), "")
