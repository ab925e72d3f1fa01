"""`python -m soak.hostile --seconds 3600 --seed 1`: hostile traffic against a pod, beside a tenant whose answers are checked."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from soak.hostile.plot import svg_of
from soak.hostile.run import Settings, soak

ROOT = Path(__file__).resolve().parents[3]


def main() -> int:
    """Run, write the result and the plot, and return 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600, help="length of the storm")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--output", type=Path, default=ROOT / ".local" / "soak", help="folder of result.json and memory.svg"
    )
    parser.add_argument(
        "--only", type=lambda text: tuple(text.split(",")), default=(), help="attacks to leave in, by name"
    )
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        **soak(Settings(given.seconds, given.seed, only=given.only), keep_log=given.output / "pod.log"),
    }
    (given.output / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    (given.output / "memory.svg").write_text(svg_of(result))
    shown = {
        name: result[name] for name in ("rate_requests_per_second", "outcomes", "tenant", "bounds", "num_findings")
    }
    print(json.dumps(shown, indent=1))
    return 1 if result["num_findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
