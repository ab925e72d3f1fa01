"""The benchmark of the API process runs from end to end."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "api_process.py"


def test_a_small_run_from_end_to_end(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    options = ("--cases=n = 4", "--tokens=8", "--repeats=1", f"--output={output}")
    done = subprocess.run([sys.executable, str(BENCHMARK), *options], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    (row,) = document["api_process"]
    assert row["tokens_per_second"] > 0
    assert 0 < row["events_per_token"] <= 1
    assert 0 < row["latency_p50_ms"] <= row["latency_p99_ms"]
    assert f"| {row['case']} |" in done.stdout
