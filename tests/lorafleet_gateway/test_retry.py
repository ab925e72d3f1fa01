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


def test_each_offer_is_counted_and_its_pod_not_asked_again() -> None:
    offers = after(Unreachable(), refusal(ErrorCode.OVERLOADED), Broken())
    assert offers.tried == {"pod-0", "pod-1", "pod-2"}
    assert (offers.num_made, offers.num_broken) == (3, 1)
    assert isinstance(offers.last, Broken)
    fresh = Offers(5, 30)
    assert (fresh.tried, fresh.num_made, fresh.num_broken, fresh.last) == (set(), 0, 0, None)


@pytest.mark.parametrize(("made", "left"), [(1, 2), (2, 1), (3, 1)])
def test_a_request_that_begins_again_may_be_offered_to_every_pod_and_once_at_least(made: int, left: int) -> None:
    offers = after(*[Unreachable()] * made, max_attempts=3)
    offers.begin_again()
    assert offers.tried == set()
    for _ in range(left):
        assert offers.may_go_on(1)
        offers.made("pod")
    assert not offers.may_go_on(1)


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
    told = after(outcome).error("french", Why.ALL_TRIED, is_pinned=False)
    assert isinstance(told, error)
    assert "french" in str(told) or "the pod that took the request" in str(told)


def test_a_pods_own_refusal_is_what_the_client_gets() -> None:
    assert after(refusal(ErrorCode.OVERLOADED)).error("french", Why.ALL_TRIED, is_pinned=False) is None
    assert after(refusal(ErrorCode.REVISION_NOT_FOUND)).error("french", Why.ALL_TRIED, is_pinned=True) is None


@pytest.mark.parametrize(
    ("why", "message"),
    [
        (Why.NO_PODS, "the base of 'french' has no pod"),
        (Why.NONE_READY, "the base of 'french' has no ready pod now"),
        (Why.ALL_TRIED, "the base of 'french' has no ready pod now"),
    ],
)
def test_without_a_pod_nothing_was_offered(why: Why, message: str) -> None:
    told = after().error("french", why, is_pinned=False)
    assert isinstance(told, NoReadyPod)
    assert str(told) == message


def test_for_another_revision_every_pod_may_be_asked_as_often_as_for_a_new_request() -> None:
    offers = after(*[refusal(ErrorCode.ADAPTER_LOADING)] * 3, max_attempts=3)
    offers.start_over()
    assert (offers.tried, offers.num_made) == (set(), 3)
    for number in range(3):
        assert offers.may_go_on(1)
        offers.made(f"pod-{number}")
        offers.failed(refusal(ErrorCode.DRAINING))
    assert not offers.may_go_on(1)
