"""The benchmark of structured output runs from end to end, forked from a server that has imported what it needs."""

import json
from pathlib import Path

from support.forked import run_forked

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "structured.py"


def test_a_small_run_answers_both_kinds(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    options = ("--size=tiny", "--requests=2", "--answer-tokens=8", "--repeats=2", f"--output={output}")
    done = run_forked("support.forked_programs:script", str(BENCHMARK), *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())["structured"]
    assert {kind: len(runs) for kind, runs in found["tokens_per_second"].items()} == {"free": 2, "JSON schema": 2}
    assert all(speed > 0 for runs in found["tokens_per_second"].values() for speed in runs)
    assert found["ratio"] > 0
    assert "\n| JSON schema | " in done.stdout
