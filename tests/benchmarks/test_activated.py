"""The benchmark of activated adapters runs from end to end, forked from a server that has imported what it needs."""

import json
from pathlib import Path

from support.forked import run_forked

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "activated.py"


def test_a_small_run_counts_what_is_computed(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    options = ("--size=tiny", "--rank=4", "--contexts", "64", "512", "--repeats=1", f"--output={output}")
    done = run_forked("support.forked_programs:script", str(BENCHMARK), *options)
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())["activated"]
    assert [row["computed_tokens"] for row in rows] == [{"activated": 8, "plain": 72}, {"activated": 8, "plain": 520}]
    assert all(row["ratio"] > 0 for row in rows)
    assert "\n| 512 | 520 | 8 |" in done.stdout
