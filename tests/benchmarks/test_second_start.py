"""The benchmark of second starts runs from end to end, its pods forked from a server that has imported what they need."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.cpu_kernels import compiled
from support.pod import NUMERALS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("second_start")


def test_a_round_is_a_download_and_a_start_without_one(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.json"
    num_bytes = (NUMERALS / "model.safetensors").stat().st_size
    options = [f"--model={NUMERALS}", "--rounds=1", "--threads=1", f"--megabytes-per-second={num_bytes / 1e6}"]
    benchmark.main([*options, f"--kernels={compiled()}", f"--output={output}"], forked=True)
    found = json.loads(output.read_text())["second_start"]
    (one,) = found["rounds"]
    assert one["first"]["download_seconds"] > 1
    assert (one["first"]["downloaded_bytes"], one["second"]["downloaded_bytes"]) == (num_bytes, 0)
    assert all(start["seconds"] > start["download_seconds"] > 0 for start in one.values())
    assert found["ratio"] == round(one["second"]["seconds"] / one["first"]["seconds"], 3)
    assert f"The second start took {found['ratio']:.2f} of the first" in capsys.readouterr().out


def test_all_files_share_the_line(benchmark: Any) -> None:
    slept: list[float] = []
    line = benchmark.Line(2e6, slept.append)
    line.take(1_000_000)
    line.take(500_000)
    assert (slept, line.num_bytes) == ([0.5, 0.25], 1_500_000)
