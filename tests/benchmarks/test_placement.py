"""The simulation of placements: the same numbers each time, and shares that keep to their bounds."""

import importlib.util
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def module(path: str):
    spec = importlib.util.spec_from_file_location(f"of_benchmarks_{path.replace('/', '_')}", BENCHMARKS / f"{path}.py")
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses look their module up
    spec.loader.exec_module(found)
    return found


share = module("measure/placing/share")
pods = module("measure/placing/pods")


def test_a_small_run_is_the_same_each_time_and_auto_loads_less(tmp_path: Path) -> None:
    options = ("--adapters=40", "--pods=4", "--slots=14", "--minutes=9", "--requests=6")
    texts = []
    for number in range(2):
        output, plot = tmp_path / f"{number}.json", tmp_path / f"{number}.svg"
        command = [sys.executable, str(BENCHMARKS / "placement.py"), *options, f"--output={output}", f"--plot={plot}"]
        environment = {**os.environ, "PYTHONHASHSEED": str(number)}
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        texts.append((output.read_text(), plot.read_text(), done.stdout))
    assert texts[0] == texts[1]
    ET.fromstring(texts[0][1])
    runs = json.loads(texts[0][0])["placement"]
    assert list(runs) == ["drift", "flash crowd", "diurnal", "node loss"]
    for scenario, by_policy in runs.items():
        assert by_policy["Auto"]["loads"] <= 0.7 * by_policy["least loaded"]["loads"], scenario
        assert by_policy["Auto"]["imbalance"] < by_policy["Fixed 1"]["imbalance"], scenario
        assert all(0 <= one["hit_rate"] <= 1 <= one["imbalance"] for one in by_policy.values())


def test_results_that_are_committed_are_those_of_the_page() -> None:
    results = json.loads((BENCHMARKS / "results" / "placement.json").read_text())["placement"]
    page = (BENCHMARKS.parent / "docs" / "placement.md").read_text()
    for runs in results.values():
        for policy, one in runs.items():
            cells = f"{one['loads']} | {one['moves']} | {one['hit_rate']:.3f} | {one['imbalance']:.2f} | {one['imbalance_p95']:.2f}"
            assert f"| {policy} | {cells} |" in page


def test_pod_drops_what_was_loaded_on_demand_before_what_it_keeps() -> None:
    pod = pods.SimulatedPod("p", 2)
    pod.keep([1])
    assert [pod.serve(adapter, 10) for adapter in (2, 1, 3, 1)] == [False, True, False, True]
    assert [pod.has(adapter) for adapter in (1, 2, 3)] == [True, False, True]
    assert (pod.num_loads, pod.tokens) == (3, 40)


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


@pytest.mark.parametrize("options", [["--minutes=5"], ["--pods=2"], ["--slots=x"]])
def test_sizes_that_mean_nothing_are_refused(options: list[str]) -> None:
    command = [sys.executable, str(BENCHMARKS / "placement.py"), *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage:" in done.stderr
