"""The benchmark of two checkouts runs from end to end; here both are this one."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "before_after.py"), str(ROOT), "--size=tiny", "--rounds=1"]
    return subprocess.run(
        [*command, f"--output={output}", *options], check=False, capture_output=True, text=True, timeout=300
    )


def test_a_small_run_has_each_step_by_both(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    known = {"adapters": 0, "before_ms": 1.0, "after_ms": 1.0, "ratio": 1.0, "ratios": [1.0, 1.0], "threads": 1}
    kept, replaced = (
        {**known, "size": "tiny", "step": f"prompts, {step}"} for step in ("1 of 3 tokens", "16 of 128 tokens")
    )
    output.write_text(json.dumps({"before_after": [replaced, kept]}))
    done = run(output, "--steps=serving", "--adapters", "0", "2", f"--folder={tmp_path}")
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())["before_after"]
    assert rows[0] == kept
    measured = rows[1:]
    assert [(one["size"], one["adapters"]) for one in measured] == [("tiny", 0), ("tiny", 0), ("tiny", 2), ("tiny", 2)]
    assert all(one["before_ms"] > 0 < one["after_ms"] for one in measured)
    assert "| tiny | 1 | prompts, 16 of 128 tokens | 2 |" in done.stdout
