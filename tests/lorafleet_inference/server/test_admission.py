"""A burst of one adapter fills the queue for itself, and for nobody else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_inference.errors import InvalidValue, Overloaded
from lorafleet_inference.server.admission import Admission, Waiting


def burst(admission: Admission, model: str) -> list[Waiting]:
    """Send until the first refusal."""
    sent: list[Waiting] = []
    while True:
        try:
            sent.append(admission.enter(model, 1))
        except Overloaded:
            return sent


def test_one_model_alone_may_have_the_whole_queue() -> None:
    assert len(burst(Admission(8), "busy")) == 8


def test_the_request_of_another_model_is_let_in_beside_a_burst() -> None:
    admission = Admission(8)
    burst(admission, "busy")
    quiet = admission.enter("quiet", 1)
    with pytest.raises(Overloaded) as refused:
        admission.enter("busy", 1)
    assert refused.value.retry_after_seconds
    quiet.leave(1)
    admission.enter("quiet", 4)
    with pytest.raises(Overloaded):
        admission.enter("quiet", 1)


def test_more_than_may_ever_wait_is_no_matter_of_trying_again() -> None:
    with pytest.raises(InvalidValue) as refused:
        Admission(8).enter("busy", 9)
    assert refused.value.param == "n"


def test_what_waits_leaves_with_its_request() -> None:
    admission = Admission(8)
    with admission.enter("one", 3) as waiting:
        waiting.leave(1)
        assert admission.num_waiting == 2
    assert admission.num_waiting == 0
    with pytest.raises(RuntimeError), admission.enter("one", 3):
        raise RuntimeError
    assert admission.num_waiting == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9), st.booleans()), max_size=60))
def test_each_model_has_its_share_whatever_the_others_do(moves: list[tuple[int, int, bool]]) -> None:
    admission, waiting = Admission(8), {model: list[tuple[Waiting, int]]() for model in range(6)}
    for model, number, leaves in moves:
        if leaves and waiting[model]:
            left, count = waiting[model].pop()
            left.leave(count)
        num_own = sum(count for _, count in waiting[model])
        num_active = sum(bool(those) for other, those in waiting.items() if other != model) + 1
        may = number <= 8 and (admission.num_waiting + number <= 8 or num_own + number <= max(1, 8 // num_active))
        try:
            waiting[model].append((admission.enter(str(model), number), number))
            assert may
        except (Overloaded, InvalidValue):
            assert not may
        assert admission.num_waiting == sum(count for those in waiting.values() for _, count in those)
