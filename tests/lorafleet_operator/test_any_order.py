"""Whatever happens in whatever order: it converges, and what must never happen never does. `make soak` looks for longer."""

from hypothesis import HealthCheck, settings
from support.fleet_machine import FleetMachine

TestAnyOrder = FleetMachine.TestCase
TestAnyOrder.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
