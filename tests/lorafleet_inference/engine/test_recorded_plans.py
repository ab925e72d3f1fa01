"""Recorded lives of a scheduler give the plans that they gave when they were recorded, to the last block.

A change of what is decided records them anew: `python -m lorafleet_inference.engine.test_recorded_plans` in `tests`. A change
of how fast, or in which words, does not.
"""

import json
from pathlib import Path

import pytest
from support.scenarios import play
from support.simulation import BLOCK_TOKENS, Simulation

from lorafleet_inference.engine.plan import StepPlan

RECORDED = Path(__file__).with_name("recorded_plans.json")


def describe(simulation: Simulation, plan: StepPlan) -> str:
    items = [
        f"{item.request_id} {item.start}+{item.num_tokens} {list(simulation.known.blocks(item, BLOCK_TOKENS))}"
        f" {int(item.samples)} {item.num_score} {int(item.decode)}"
        for item in plan.items
    ]
    sums = f"{plan.max_tokens} {plan.num_queried_tokens} {plan.num_hit_tokens}"
    return "; ".join([*items, f"first {plan.first_scheduled}", f"preempted {plan.preempted}", sums])


@pytest.mark.parametrize(("seed", "digest"), json.loads(RECORDED.read_text()).items())
def test_the_plans_are_the_recorded_ones(seed: str, digest: str) -> None:
    assert play(int(seed), describe) == digest


if __name__ == "__main__":
    plans = {seed: play(int(seed), describe) for seed in json.loads(RECORDED.read_text())}
    RECORDED.write_text(json.dumps(plans, indent=0) + "\n")
