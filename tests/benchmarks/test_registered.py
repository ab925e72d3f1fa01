"""The benchmark of many registered adapters runs from end to end, forked from a server that has imported what it needs."""

import json
from pathlib import Path

from support.cpu_kernels import with_kernels
from support.forked import run_forked

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "registered.py"


def test_a_small_run_measures_both_engines(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    options = ("--size=tiny", "--registered=5", "--resident=2", "--requests=6", "--prompt-tokens=20")
    options += ("--answer-tokens=6", "--rounds=1", f"--cache={tmp_path}", f"--output={output}")
    script = ("support.forked_programs:script", str(BENCHMARK))
    done = run_forked(*script, *options, environment=with_kernels(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())["registered"]
    assert (found["few"], found["many"]) == (2, 5)
    (few,), (many,) = found["few_seconds"], found["many_seconds"]
    assert found["ratio"] == round(few / many, 3) > 0
    assert f"had {found['ratio']:.2f} times the tokens" in done.stdout
