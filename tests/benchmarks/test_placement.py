"""The simulation of placements: the same numbers each time, and what a pod drops."""

import importlib.util
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def module(path: str):
    spec = importlib.util.spec_from_file_location(f"of_benchmarks_{path.replace('/', '_')}", BENCHMARKS / f"{path}.py")
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses look their module up
    spec.loader.exec_module(found)
    return found


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
        # less to load at the same evenness; the seeds 1 to 3 differ from each other by as much
        even, rival = runs["Auto, even"], runs["least loaded"]
        assert even["loads"] <= 0.7 * rival["loads"]
        assert even["imbalance"] <= rival["imbalance"] + 0.005


def test_pod_drops_what_was_loaded_on_demand_before_what_it_keeps() -> None:
    pod = pods.SimulatedPod("p", 2)
    pod.keep([1])
    assert [pod.serve(adapter, 10) for adapter in (2, 1, 3, 1)] == [False, True, False, True]
    assert [pod.has(adapter) for adapter in (1, 2, 3)] == [True, False, True]
    assert (pod.num_loads, pod.tokens) == (3, 40)


@pytest.mark.parametrize("options", [["--minutes=5"], ["--pods=2"], ["--slots=x"]])
def test_sizes_that_mean_nothing_are_refused(options: list[str]) -> None:
    command = [sys.executable, str(BENCHMARKS / "placement.py"), *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage:" in done.stderr
