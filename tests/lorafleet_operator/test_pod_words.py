"""What keeps a pod from coming up is told in the words of whoever knows it, and its last words are kept."""

import pytest

from lorafleet_operator.decide.pod_words import is_being_created, problem_in, problem_of, stage_of

SCHEDULED = {"type": "PodScheduled", "status": "True"}
UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": 'persistentvolumeclaim "x" not found',
}


def status(*containers: dict, conditions: tuple[dict, ...] = (SCHEDULED,), init: tuple[dict, ...] = (), **more) -> dict:
    return {
        "conditions": list(conditions),
        "containerStatuses": list(containers),
        "initContainerStatuses": list(init),
        **more,
    }


def waiting(reason: str, message: str = "", *, name: str = "engine", last: dict | None = None) -> dict:
    said = {"reason": reason, **({"message": message} if message else {})}
    return {"name": name, "state": {"waiting": said}, "lastState": {"terminated": last} if last else {}}


LAST = {
    "exitCode": 1,
    "reason": "Error",
    "message": "starting\nlorafleet-inference: no such model: /volumes/model/x\n\n",
}
CRASHED = "CrashLoopBackOff: back-off 10s; ended with 1 (Error): lorafleet-inference: no such model: /volumes/model/x"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (status(waiting("ContainerCreating")), ""),
        (status(waiting("PodInitializing")), ""),
        (status(waiting("ErrImagePull", "not found")), "ErrImagePull: not found"),
        (status(waiting("CrashLoopBackOff", "back-off 10s", last=LAST)), CRASHED),
        (status(conditions=(UNSCHEDULABLE,)), 'Unschedulable: persistentvolumeclaim "x" not found'),
        (
            status({"name": "engine", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}),
            "ended with 137 (OOMKilled)",
        ),
        (status({"name": "engine", "state": {"terminated": {"exitCode": 0}}}), ""),
        (
            status(waiting("PodInitializing"), init=(waiting("CrashLoopBackOff", name="fetch"),)),
            "container fetch: CrashLoopBackOff",
        ),
        (status(phase="Failed", reason="Evicted", message="low on memory"), "Evicted: low on memory"),
        (
            status({"name": "engine", "state": {"terminated": LAST}}, phase="Failed"),
            "ended with 1 (Error): lorafleet-inference: no such model: /volumes/model/x",
        ),
        (status({"name": "engine", "state": {"running": {}}}), ""),
        ({}, ""),
    ],
)
def test_problem(given: dict, expected: str) -> None:
    assert problem_of(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "waits for a node"),
        (status(waiting("ContainerCreating")), "its containers are being created: volumes, image"),
        (status({"name": "engine", "state": {"running": {}}}), "loads the base model"),
        (
            status({"name": "engine", "started": True, "state": {"running": {}}}),
            "loads the base model, or waits for its first adapters",
        ),
        (status(conditions=(SCHEDULED, {"type": "Ready", "status": "True"})), ""),
    ],
)
def test_stage(given: dict, expected: str) -> None:
    assert stage_of(given) == expected


def test_only_a_pod_that_is_being_created_is_worth_a_look_at_its_events() -> None:
    assert is_being_created(status(waiting("ContainerCreating")))
    assert not is_being_created(status(waiting("ErrImagePull")))
    assert not is_being_created(status({"name": "engine", "state": {"running": {}}}))
    assert not is_being_created(status(waiting("PodInitializing"), init=(waiting("ErrImagePull", name="fetch"),)))


def test_latest_warning_is_the_problem() -> None:
    old = {"reason": "FailedMount", "message": "timed out", "lastTimestamp": "2026-01-01T00:00:00Z"}
    new = {"reason": "FailedMount", "message": 'secret "hub" not found', "eventTime": "2026-01-01T00:01:00Z"}
    assert problem_in([old, new]) == problem_in([new, old]) == 'FailedMount: secret "hub" not found'
    assert problem_in([]) == ""
