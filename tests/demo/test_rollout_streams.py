"""The instruments by which the cluster test of rollouts judges: events, timelines and bounds."""

import math
from fractions import Fraction

import pytest
from support.rollout_streams import Ending, Timeline, binomial_bounds, read_events

OLD, NEW = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
PIECE = 'data: {"choices": [{"delta": {"content": "M"}}]}\n\n'


@pytest.mark.parametrize(
    ("body", "ending", "text", "code"),
    [
        (f"{PIECE}{PIECE}data: [DONE]\n\n", Ending.WHOLE, "MM", ""),
        (f'{PIECE}event: error\ndata: {{"error": {{"code": "pod_lost"}}}}\n\n', Ending.ERROR_EVENT, "M", "pod_lost"),
        (f'{PIECE}data: {{"choices": []}}\n\n', Ending.CUT_SHORT, "M", ""),
        ("", Ending.CUT_SHORT, "", ""),
    ],
    ids=["whole", "error event", "cut short", "empty"],
)
def test_how_a_stream_ended(body: str, ending: Ending, text: str, code: str) -> None:
    assert read_events(body) == (ending, text, code)


def test_a_revision_may_answer_while_status_gives_it_a_weight() -> None:
    line = Timeline()
    line.hear(0, "|")
    line.hear(1, f"{OLD}|")
    line.hear(2, f"{OLD}|")
    line.hear(10, f'{OLD}|[{{"revision": "{OLD}", "weight": 80}}, {{"revision": "{NEW}", "weight": 20}}]')
    line.hear(20, f'{OLD}|[{{"revision": "{OLD}", "weight": 100}}]')
    assert [said.since for said in line.said] == [1, 10, 20]
    assert line.allowed(3, 5, slack_seconds=0) == {OLD}
    assert line.allowed(3, 11, slack_seconds=0) == {OLD, NEW}
    assert line.allowed(21, 25, slack_seconds=0) == {OLD}
    assert line.allowed(21, 25, slack_seconds=2) == {OLD, NEW}
    line.hear(30, f'{OLD}|[{{"revision": "{OLD}", "weight": 100}}, {{"revision": "{NEW}", "weight": 0}}]')
    assert line.allowed(31, 32, slack_seconds=0) == {OLD}


@pytest.mark.parametrize(("num", "share"), [(40, 0.5), (40, 0.2), (7, 0.1), (1, 0.5)])
def test_bounds_are_those_of_the_exact_distribution(num: int, share: float) -> None:
    exact = Fraction(share)
    chances = [math.comb(num, k) * exact**k * (1 - exact) ** (num - k) for k in range(num + 1)]
    low, high = binomial_bounds(num, share, 1e-3)
    assert sum(chances[:low]) <= 5e-4 < sum(chances[: low + 1])
    assert sum(chances[high + 1 :]) <= 5e-4 < sum(chances[high:])


def test_bounds_of_many_draws() -> None:
    low, high = binomial_bounds(10_000, 0.2, 1e-6)
    assert 1_790 < low < 1_810
    assert 2_190 < high < 2_210
