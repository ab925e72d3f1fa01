"""What has to hold of a run beside right answers: nothing restarted, nothing grew, nobody waited beyond measure."""

import math
from dataclasses import dataclass

from soak.hostile.tenant import NUM_ASKING, Tenant, percentile
from soak.hostile.watch import API, ENGINE, Watch, growth
from soak.hostile.world import BASE, COLD, NUM_RESIDENT, OWN

from lorafleet_inference.engine.pace import MIN_BUSY_PROMPT_TOKENS

MEMORY_SHARE, MEMORY_MIB = 0.05, 16.0
"""After the first sixth of the run a straight line through a process's resident memory rises by no more than both together."""
FILES_AFTERWARDS = 32
"""More than before, when all clients have gone."""
MAX_THREADS = {API: 64, ENGINE: 32}
MAX_CHILDREN = 6
"""The engine, four template workers, and one that takes the place of another."""
WARM_UP_SECONDS = 300.0
"""A storm of less than twice this is all warm-up, and says nothing of growth."""
WAITS = {OWN: 1000, BASE: 2000, COLD: 2000}
"""How long the tenant may wait for a whole answer at most, in the time in which the pod answers so many plain requests: the queue
of the base is everybody's, and the adapter that is not pinned waits for one of the few places on the device."""
MANY_SECONDS = 30.0
"""In less the tenant has too few answers for a p95."""
HEALTH_P99_SECONDS, HEALTH_MAX_SECONDS = 1.0, 5.0
"""Kubernetes gives a probe one second, and several tries."""


@dataclass(frozen=True)
class Bound:
    """One thing that was measured, and what it may be at most."""

    name: str
    value: float
    at_most: float

    @property
    def holds(self) -> bool:
        return self.value <= self.at_most


def _steps_of_tenant(watch: Watch, tenant: Tenant) -> float:
    """Steps that the engine did while the pinned adapter was waited for, which depend on no machine's speed."""
    waits = zip(tenant.waits.at, tenant.waits.whole, tenant.waits.model, strict=True)
    return percentile([watch.steps_between(at - whole, at) for at, whole, model in waits if model == OWN], 0.95)


def _steps_of_share(tenant: Tenant) -> int:
    """Steps that its longest answer takes at a fair share: the one that runs when it comes, those that its prompt takes, and one
    for each token; and those that all its tokens take again, as sequences make room for others all the time here.

    What is computed in pieces waits for that of the tenant's other askers, and all of it has of each step one part of the
    least that a step takes of prompts: as many parts as adapters fit on the device, and the base.
    """
    cases = [case for case in tenant.cases if case.body["model"] == OWN]
    longest_prompt = max((case.answer.usage[0] for case in cases), default=0)
    longest_answer = max((case.body["max_tokens"] for case in cases), default=0)
    in_pieces = longest_prompt + (longest_prompt + longest_answer)
    pieces = math.ceil(NUM_ASKING * in_pieces * (NUM_RESIDENT + 1) / MIN_BUSY_PROMPT_TOKENS)
    return 1 + pieces + longest_answer


def bounds(
    watch: Watch, tenant: Tenant, rate: float, *, storm: tuple[float, float], files_before: int, disk_mib: float
) -> list[Bound]:
    """Return all bounds; `storm`: when it began and ended."""
    begin, end = storm
    warm = [one for one in watch.samples if begin + (end - begin) / 6 <= one.seconds <= end]
    found = []
    for role in (API, ENGINE):
        threads = max((one.threads.get(role, 0) for one in watch.samples), default=0)
        found.append(Bound(f"threads of the {role} process", threads, MAX_THREADS[role]))
        if end - begin < 2 * WARM_UP_SECONDS:
            continue
        values = [(one.seconds, one.memory_mib[role]) for one in warm if role in one.memory_mib]
        most = MEMORY_MIB + MEMORY_SHARE * percentile([value for _, value in values], 0.5)
        found.append(Bound(f"growth of the {role} process in MiB", round(growth(values), 2), round(most, 2)))
    found += [
        Bound(
            "open files of the API process afterwards", watch.samples[-1].files[API], files_before + FILES_AFTERWARDS
        ),
        Bound("child processes", max(one.num_children for one in watch.samples), MAX_CHILDREN),
        Bound("MiB on disk", round(max(one.disk_mib for one in watch.samples), 2), disk_mib),
        *(
            Bound(
                f"{model}: longest of seconds to the whole answer",
                tenant.seconds_of(model)["max"],
                round(most / rate, 1),
            )
            for model, most in WAITS.items()
        ),
    ]
    if end - begin >= MANY_SECONDS:
        steps = round(_steps_of_tenant(watch, tenant))
        found.append(Bound("tenant: p95 of steps to the whole answer", steps, _steps_of_share(tenant)))
    late = [seconds for at, seconds in watch.health if begin <= at <= end]
    return [
        *found,
        Bound("/health p99 in seconds", round(percentile(late, 0.99), 3), HEALTH_P99_SECONDS),
        Bound("/health longest in seconds", round(max(late, default=0), 3), HEALTH_MAX_SECONDS),
    ]
