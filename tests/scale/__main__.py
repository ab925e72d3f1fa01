"""`python -m scale [--pods 50] [--adapters 1000] [--sweep]`: operator and gateway at scale, over a real API server; `make scale`."""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from scale.environment import describe
from scale.network import enter_own
from scale.plot import svg_of
from scale.results import Results
from scale.run import Sizes, measure

DEFAULT = Sizes()
SWEEP = ((5, 125), (12, 250), (25, 500))
"""Pods and adapters of the smaller runs: what the cost grows with."""
SHORT = Sizes(num_changes=30, churn_seconds=15.0, steady_seconds=32.0, rolls=False)


def main() -> int:
    """Measure, write, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=DEFAULT.num_pods)
    parser.add_argument("--adapters", type=int, default=DEFAULT.num_adapters)
    parser.add_argument("--changes", type=int, default=DEFAULT.num_changes, help="single changes")
    parser.add_argument("--churn-seconds", type=float, default=DEFAULT.churn_seconds)
    parser.add_argument("--steady-seconds", type=float, default=DEFAULT.steady_seconds)
    parser.add_argument("--no-roll", action="store_true", help="leave out the rolling update")
    parser.add_argument("--sweep", action="store_true", help="measure smaller sizes before, for the plot; minutes more")
    parser.add_argument(
        "--output", type=Path, help="file of the results, as JSON; it is begun anew, and written after each phase"
    )
    parser.add_argument("--plot", type=Path, help="file of the plot of cost against size, as SVG")
    parser.add_argument("--logs", type=Path, help="folder for the programs' logs; without it they go with the run")
    given = parser.parse_args()
    enter_own()
    sizes = Sizes(
        num_pods=given.pods,
        num_adapters=given.adapters,
        num_changes=given.changes,
        churn_seconds=given.churn_seconds,
        steady_seconds=given.steady_seconds,
        rolls=not given.no_roll,
    )
    results = Results(describe(), given.output)
    for pods, adapters in SWEEP if given.sweep else ():
        small = replace(SHORT, num_pods=pods, num_adapters=adapters)
        results.add_smaller(partial(measure, small, _say, logs=given.logs))
    results.add_run(partial(measure, sizes, _say, logs=given.logs))
    if given.plot is not None:
        given.plot.write_text(svg_of(results.sizes))
    print(results.text(), end="")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
