"""Shares keep to bounds and places, follow the rates, rise at once and fall late."""

from hypothesis import given
from hypothesis import strategies as st

from lorafleet_operator.decide import share


@st.composite
def demands(draw: st.DrawFn):
    names = [f"a{number}" for number in range(draw(st.integers(1, 8)))]
    rates = {name: draw(st.floats(0, 1000, allow_nan=False)) for name in names}
    bounds = {}
    for name in names:
        least = draw(st.integers(0, 3))
        bounds[name] = share.Bounds(least, draw(st.integers(max(1, least), 6)))
    return rates, bounds, draw(st.integers(0, 30))


@given(demands())
def test_shares_keep_to_bounds_and_places_and_follow_the_rates(demand) -> None:
    rates, bounds, total = demand
    deserved = share.proportional(rates, bounds, total)
    assert deserved.keys() == bounds.keys()
    lower = sum(bound.least for bound in bounds.values())
    assert sum(deserved.values()) <= max(total, 0)
    for name, number in deserved.items():
        assert number <= bounds[name].most
        if lower <= share.FOR_LOWER_BOUNDS * total:
            assert number >= bounds[name].least
    for one in rates:
        for other in rates:
            if bounds[one] == bounds[other] and rates[one] > rates[other]:
                assert deserved[one] >= deserved[other]


def test_places_are_given_by_largest_remainder() -> None:
    bounds = {name: share.Bounds(0, 10) for name in "abc"}
    assert share.proportional({"a": 5.0, "b": 3.4, "c": 1.6}, bounds, 7) == {"a": 4, "b": 2, "c": 1}
    assert share.proportional({"a": 0.0, "b": 0.0, "c": 0.0}, bounds, 7) == {"a": 0, "b": 0, "c": 0}
    capped = {**bounds, "a": share.Bounds(0, 2)}
    assert share.proportional({"a": 90.0, "b": 6.0, "c": 4.0}, capped, 7) == {"a": 2, "b": 3, "c": 2}


def test_lower_bounds_beyond_the_places_are_kept_for_those_that_are_asked_for_most() -> None:
    bounds = {name: share.Bounds(1, 4) for name in "abcdefgh"}
    rates = {name: float(8 - place) for place, name in enumerate("abcdefgh")}
    deserved = share.proportional({**rates, "a": 80.0}, bounds, 8)
    assert deserved["a"] > 1
    assert deserved["h"] == 0
    assert sum(deserved.values()) == 8


def after(shares, deserved, *, times: int = 1, max_moves: int = 10, total: int = 100):
    bounds = {name: share.Bounds(0, 10) for name in deserved}
    for _ in range(times):
        shares = share.next_shares(shares, deserved, bounds, total=total, max_moves=max_moves)
    return shares


def numbers(shares) -> dict[str, int]:
    return {name: one.num_pods for name, one in shares.items()}


def test_shares_rise_at_once_and_fall_after_five_windows_in_a_row() -> None:
    begun = after({}, {"a": 2, "b": 4})
    risen = after(begun, {"a": 5, "b": 4})
    assert numbers(risen) == {"a": 5, "b": 4}
    low = after(risen, {"a": 1, "b": 4}, times=4)
    assert numbers(low) == {"a": 5, "b": 4}
    assert numbers(after(low, {"a": 1, "b": 4})) == {"a": 1, "b": 4}
    interrupted = after(after(low, {"a": 5, "b": 4}), {"a": 1, "b": 4}, times=4)
    assert numbers(interrupted) == {"a": 5, "b": 4}
    assert numbers(after(after(low, {"a": 3, "b": 4}), {"a": 1, "b": 4}))["a"] == 3  # the most of the five


def test_moves_in_a_window_are_bounded_and_go_on_in_the_next() -> None:
    begun = after({}, {"a": 1, "b": 1})
    first = after(begun, {"a": 8, "b": 3}, max_moves=4)
    assert numbers(first) == {"a": 5, "b": 1}
    assert numbers(after(first, {"a": 8, "b": 3}, max_moves=4)) == {"a": 8, "b": 2}
    assert numbers(after(first, {"a": 8, "b": 3}, max_moves=4, times=2)) == {"a": 8, "b": 3}


def test_who_deserves_less_gives_way_at_once_to_who_rises() -> None:
    begun = after({}, {"a": 6, "b": 2, "c": 2})
    assert numbers(after(begun, {"a": 3, "b": 5, "c": 2}, total=13)) == {"a": 6, "b": 5, "c": 2}
    assert numbers(after(begun, {"a": 3, "b": 5, "c": 2}, total=11)) == {"a": 4, "b": 5, "c": 2}
    assert numbers(after(begun, {"a": 3, "b": 5, "c": 2}, total=10)) == {"a": 3, "b": 5, "c": 2}


def test_bounds_hold_at_once() -> None:
    begun = after({}, {"a": 2})
    for bounds, deserved, expected in ((share.Bounds(4, 8), 4, 4), (share.Bounds(1, 1), 1, 1)):
        found = share.next_shares(begun, {"a": deserved}, {"a": bounds}, total=8, max_moves=0)
        assert numbers(found) == {"a": expected}


def test_nobody_is_put_where_it_has_no_use() -> None:
    bounds = {name: share.Bounds(1, 8) for name in "abc"}
    narrowed = share.worthwhile({"a": 980.0, "b": 19.0, "c": 1.0}, bounds, 8)
    assert narrowed == {"a": share.Bounds(1, 8), "b": share.Bounds(1, 1), "c": share.Bounds(1, 1)}
    assert share.worthwhile({}, bounds, 8) == dict.fromkeys("abc", share.Bounds(1, 1))
    wide = {"a": share.Bounds(3, 8), "b": share.Bounds(0, 2)}
    assert share.worthwhile({"a": 1.0, "b": 1.0}, wide, 8) == wide
