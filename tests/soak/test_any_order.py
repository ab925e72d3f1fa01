"""For an hour: whatever happens to a fleet in whatever order, it converges, and what must never happen never does."""

import os
import time

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from support.fleet_machine import FleetMachine

SECONDS = float(os.environ.get("LORAFLEET_TEST_SOAK_SECONDS", "3600"))


@pytest.mark.soak
def test_any_order_for_long() -> None:
    """A failure is printed as the steps that led to it, and is the first that the next run tries."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        run_state_machine_as_test(
            FleetMachine,
            settings=settings(
                max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
