"""The benchmark runs from end to end on a model of a moment; its page shows what its results hold."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from support.cpu_kernels import with_kernels
from support.forked import run_forked

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = ROOT / "benchmarks" / "serving.py"
SMALL = ("--size=tiny", "--requests=6", "--prompt-tokens=20", "--answer-tokens=6", "--repeats=1", "--threads=1")


def test_a_small_run_from_end_to_end(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    options = ("--figures=throughput", "--adapters=2", "--baselines=", f"--cache={tmp_path}", f"--output={output}")
    script = ("support.forked_programs:script", str(BENCHMARK))
    done = run_forked(*script, *SMALL, *options, environment=with_kernels(tmp_path))
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    (row,) = document["rows"]
    assert (row["system"], row["num_adapters"]) == ("server", 2)
    assert row["figures"]["tokens_per_second"] == pytest.approx(row["tokens_per_second_runs"][0], abs=0.1)
    assert 0 < row["figures"]["ttft_p50_ms"] <= row["figures"]["ttft_p95_ms"]
    assert row["peak_mib"] > 100
    assert {"commit", "cpu", "cores", "torch"} <= document["environment"].keys()
    assert "| lorafleet, over HTTP |" in done.stdout


def test_the_page_shows_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from measure import report

    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert report.page(text, ROOT / "benchmarks" / "results") == text, "run: python benchmarks/serving.py --page"


def test_what_a_bound_costs_is_the_median_of_runs_that_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from measure import report
    from measure.fairness import Fairness
    from measure.timing import Figures

    alone = Figures(20.0, ttft_p50_ms=150.0, ttft_p95_ms=160.0)
    rows = [
        Fairness(None, 50, 40, alone, Figures(4.0, ttft_p50_ms=400.0, ttft_p95_ms=960.0), [100.0, 200.0, 300.0]),
        Fairness(250.5, 50, 40, alone, Figures(4.0, ttft_p50_ms=300.0, ttft_p95_ms=400.0), [90.0, 190.0, 270.0]),
    ]
    text = report.tables({"environment": {}, "setting": {}, "rows": [], "fairness": [asdict(row) for row in rows]})
    assert "one keeps 50 in flight (40 requests each), and what is decoded meanwhile" in text
    assert "| no bound | 150 | 160 | 400 | 960 | 6.00 | 200 | 1.000 |" in text
    assert "| 250.5 ms | 150 | 160 | 300 | 400 | 2.50 | 190 | 0.900 |" in text


def test_an_unknown_figure_is_named() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--figures=thruoghput"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "'thruoghput' is none of" in done.stderr
