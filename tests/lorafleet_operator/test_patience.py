"""What waits a moment, and for how long: first catalogues for sources, statuses for what is under way."""

from support import operator_views as v
from support.operator_views import KEY, NOW

from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterResource, AdapterStatus
from lorafleet_operator.decide import deferral, first_catalogue
from lorafleet_operator.decide.conditions import progress_of, said, with_times
from lorafleet_operator.decide.deferral import MAX_AT_ONCE, WAIT_SECONDS, Deferrals
from lorafleet_operator.decide.diff import PodChange
from lorafleet_operator.decide.first_catalogue import MAX_WAIT_SECONDS, FirstCatalogues


def change(name: str, fence: int) -> PodChange:
    return PodChange(v.seen(pod=v.pod(name), fence=fence), (), (), "because")


def test_first_catalogue_waits_for_sources_and_not_for_ever() -> None:
    waiting, fresh, known = FirstCatalogues(), change("p0", 0), change("p1", 1)
    assert waiting.due(KEY, [fresh, known], is_resolving=False, now=0) == [fresh, known]
    assert waiting.due(KEY, [fresh, known], is_resolving=True, now=1) == [known]
    assert waiting.due(KEY, [fresh], is_resolving=True, now=MAX_WAIT_SECONDS) == []
    assert waiting.due(KEY, [fresh], is_resolving=True, now=1 + MAX_WAIT_SECONDS) == [fresh]
    assert waiting.due(KEY, [fresh], is_resolving=True, now=2 + MAX_WAIT_SECONDS) == []
    assert first_catalogue.LOOK_SECONDS < MAX_WAIT_SECONDS


def status(reason: Reason, *, ready: bool = False, revision: str | None = None) -> AdapterStatus:
    verdict = said("Ready", ready, reason, "m")
    available = said("Available", revision is not None, Reason.SERVING, "m")
    verdicts = [verdict, available, *progress_of(verdict, is_stalled=reason is Reason.UNSAFE_FORMAT, is_waiting=True)]
    return AdapterStatus(stable_revision=revision, conditions=with_times(verdicts, [], generation=2, now=NOW))


def due(deferrals: Deferrals, changes: list[tuple[AdapterResource, AdapterStatus]], now: float) -> list[str]:
    return [resource.metadata.name for resource, _ in deferrals.due(KEY, changes, now=now)]


def test_progress_waits_and_everything_else_does_not() -> None:
    adapter, old = v.adapter(), v.adapter(status={"stableRevision": "a" * 12})
    for found, is_due in (
        ((adapter, status(Reason.RESOLVING)), False),
        ((adapter, status(Reason.LOADING)), False),
        ((adapter, status(Reason.NO_READY_PODS)), True),
        ((adapter, status(Reason.UNSAFE_FORMAT)), True),
        ((adapter, status(Reason.SERVING, ready=True, revision="b" * 12)), True),
        ((old, status(Reason.LOADING, revision=None)), True),
    ):
        assert bool(due(Deferrals(), [found], 0)) == is_due, found
    assert {Reason.RESOLVING, Reason.LOADING} == deferral.UNDER_WAY


def test_progress_is_written_after_a_while_a_few_at_a_time() -> None:
    deferrals = Deferrals()
    many = [(v.adapter(f"a{number:02d}"), status(Reason.LOADING)) for number in range(MAX_AT_ONCE + 5)]
    assert due(deferrals, many, 0) == []
    assert due(deferrals, many, WAIT_SECONDS / 2) == []
    first = due(deferrals, many, WAIT_SECONDS)
    assert len(first) == MAX_AT_ONCE
    left = [pair for pair in many if pair[0].metadata.name not in first]
    assert len(due(deferrals, left, WAIT_SECONDS)) == 5
    assert due(deferrals, many[:1], WAIT_SECONDS) == []
