"""Which requests are offered again, and what the client is told if not."""

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from lorafleet_contract.openai import ErrorCode
from lorafleet_gateway.errors import AdapterLoading, NoReadyPod, PodLost, PodSilent
from lorafleet_gateway.fleet.routing import Why
from lorafleet_gateway.front.outcomes import REFUSALS, Broken, NotTaken, Refusal, Silent, Unreachable
from lorafleet_gateway.front.retry import Offers


def refusal(code: ErrorCode) -> Refusal:
    return Refusal(code, 503, CIMultiDictProxy(CIMultiDict()), b"{}")


def after(*outcomes: Refusal | NotTaken, max_attempts: int = 5) -> Offers:
    offers = Offers(max_attempts, 30)
    for index, outcome in enumerate(outcomes):
        offers.made(f"pod-{index}")
        offers.failed(outcome)
    return offers


@pytest.mark.parametrize("outcome", [Unreachable(), Broken(), *map(refusal, sorted(REFUSALS))])
def test_what_was_not_begun_is_offered_again(outcome: Refusal | NotTaken) -> None:
    assert after(outcome).may_go_on(1)


def test_attempts_and_time_are_bounded() -> None:
    assert not after(*[Unreachable()] * 3, max_attempts=3).may_go_on(1)
    assert after(*[Unreachable()] * 2, max_attempts=3).may_go_on(29)
    assert not after(Unreachable()).may_go_on(30)


def test_a_request_under_which_pods_break_meets_two_of_them() -> None:
    assert after(Broken(), Unreachable()).may_go_on(1)
    assert not after(Broken(), Unreachable(), Broken()).may_go_on(1)


def test_a_pod_that_may_still_work_on_it_is_the_last() -> None:
    assert not after(Silent()).may_go_on(1)


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Unreachable(), NoReadyPod),
        (Broken(), PodLost),
        (Silent(), PodSilent),
        (refusal(ErrorCode.REVISION_NOT_FOUND), AdapterLoading),
        (refusal(ErrorCode.MODEL_NOT_FOUND), AdapterLoading),
    ],
)
def test_the_client_is_told_the_last_failure(outcome: Refusal | NotTaken, error: type[Exception]) -> None:
    assert isinstance(after(outcome).error("french", Why.ALL_TRIED, is_pinned=False), error)


def test_a_pods_own_refusal_is_what_the_client_gets() -> None:
    assert after(refusal(ErrorCode.OVERLOADED)).error("french", Why.ALL_TRIED, is_pinned=False) is None
    assert after(refusal(ErrorCode.REVISION_NOT_FOUND)).error("french", Why.ALL_TRIED, is_pinned=True) is None


def test_without_a_pod_nothing_was_offered() -> None:
    assert isinstance(after().error("french", Why.NO_PODS, is_pinned=False), NoReadyPod)
