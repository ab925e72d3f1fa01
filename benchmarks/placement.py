"""What a placement of adapters costs and gives: `python benchmarks/placement.py [--slots 16] [--output FILE] [--plot FILE]`.

A simulation of minutes without pods, cluster or clock: the operator's own `decide/place.py` decides where adapters are kept,
requests are drawn from a seed, and pods are slots in order of use. The same options give the same numbers on every machine.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from measure.placing.demand import STEP_SECONDS, Size, scenarios
from measure.placing.plot import svg_of
from measure.placing.policies import Auto, AutoEven, LeastLoaded, LeastLoadedWithAffinity, Placed, Policy, Rendezvous
from measure.placing.run import WARM_UP_MINUTES, Outcome, run

PLOTTED = ("Fixed 1", "rendezvous 2", LeastLoaded.name, LeastLoadedWithAffinity.name, "Auto")
Outcomes = dict[str, dict[str, Outcome]]


def policies(num_adapters: int) -> list[Policy]:
    """Return what is compared; policies remember, so each run gets its own."""
    return [
        Placed("All", None, num_adapters),
        Placed("Fixed 1", 1, num_adapters),
        Placed("Fixed 2", 2, num_adapters),
        Rendezvous(1, num_adapters),
        Rendezvous(2, num_adapters),
        LeastLoaded(),
        LeastLoadedWithAffinity(),
        Auto(num_adapters),
        AutoEven(num_adapters),
    ]


def simulate(size: Size, slots: int) -> Outcomes:
    """Return scenario -> policy -> what came of it."""
    return {
        scenario.name: {policy.name: run(policy, scenario, slots) for policy in policies(size.num_adapters)}
        for scenario in scenarios(size)
    }


def table(outcomes: Outcomes) -> str:
    """Return the outcomes as Markdown."""
    lines = ["| | | loads | moves | hit rate | imbalance | p95 |", "|---|---|---:|---:|---:|---:|---:|"]
    for scenario, runs in outcomes.items():
        for place, (policy, one) in enumerate(runs.items()):
            cells = [
                f"{one.loads}",
                f"{one.moves}",
                f"{one.hit_rate:.3f}",
                f"{one.imbalance:.2f}",
                f"{one.imbalance_p95:.2f}",
            ]
            lines.append(f"| {'' if place else scenario} | {policy} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, print, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--pods", type=int, default=8)
    parser.add_argument("--slots", type=int, default=32, help="adapters on the device of a pod")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--requests", type=int, default=20, help="a second, all adapters together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="results as JSON")
    parser.add_argument("--plot", type=Path, help="results as SVG")
    chosen = parser.parse_args(arguments)
    if chosen.minutes <= WARM_UP_MINUTES or chosen.pods < 3 or chosen.adapters < 3:
        parser.error(f"needs more than {WARM_UP_MINUTES} minutes, and at least 3 pods and 3 adapters")
    num_steps = chosen.minutes * 60 // STEP_SECONDS
    size = Size(chosen.adapters, chosen.pods, num_steps, chosen.requests * STEP_SECONDS, chosen.seed)
    outcomes = simulate(size, chosen.slots)
    sys.stdout.write(table(outcomes))
    if chosen.output is not None:
        rows = {
            scenario: {policy: {k: v for k, v in asdict(one).items() if k != "minutes"} for policy, one in runs.items()}
            for scenario, runs in outcomes.items()
        }
        settings = {name: value for name, value in vars(chosen).items() if name not in ("output", "plot")}
        chosen.output.write_text(json.dumps({"settings": settings, "placement": rows}, indent=1) + "\n")
    if chosen.plot is not None:
        lines = {scenario: {policy: runs[policy].minutes for policy in PLOTTED} for scenario, runs in outcomes.items()}
        chosen.plot.write_text(svg_of(lines))


if __name__ == "__main__":
    main()
