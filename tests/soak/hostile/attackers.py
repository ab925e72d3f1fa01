"""Those who misbehave, as a process of their own: what they are late with is not the pod's lateness.

Reads its orders as JSON from standard input and writes its ledger to standard output.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from soak.hostile import attacks, churn, rude
from soak.hostile.world import Target, World

Attack = Callable[[World, random.Random], Awaitable[int]]
MIX: dict[Attack, float] = {
    attacks.work: 50,
    attacks.fields: 20,
    attacks.wild: 6,
    rude.leave: 10,
    rude.garbage: 4,
    attacks.read: 4,
    churn.churn: 2,
    attacks.template: 1,
    attacks.long_text: 1,
    rude.slow: 1,
    attacks.burst: 0.15,
}
"""How often each begins; a burst counts as all its requests."""
TIMES_THE_RATE = 3.0
MAX_UNDER_WAY = 600
"""Attacks at a time; what would be more is not sent, and counted."""
CALM_SECONDS = 240.0


async def storm(target: Target, rate: float, seconds: float, only: list[str]) -> dict[str, Any]:
    """Let attacks begin at random moments, at three times the rate; return the ledger when all have ended."""
    kinds = [kind for kind in MIX if not only or kind.__name__ in only]
    weights = [MIX[kind] for kind in kinds]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        world, rng = World(target, session), target.randomness("storm")
        due = began = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            if due > now:
                await asyncio.sleep(min(due, began + seconds) - now)
                continue
            kind = rng.choices(kinds, weights)[0]
            due += (attacks.BURST_REQUESTS if kind is attacks.burst else 1) * rng.expovariate(TIMES_THE_RATE * rate)
            _begin(world, kind, random.Random(rng.random()))
            due = max(due, now - 1.0)  # who was held up does not make up for more than a second
        async with asyncio.timeout(CALM_SECONDS):
            while world.tasks:
                await asyncio.wait(world.tasks)
        return world.ledger.as_json()


def _begin(world: World, kind: Attack, rng: random.Random) -> None:
    if len(world.tasks) >= MAX_UNDER_WAY:
        world.ledger.count("not sent", kind.__name__)
        return
    task = asyncio.create_task(_attack(world, kind, rng))
    world.tasks.add(task)
    task.add_done_callback(world.tasks.discard)


async def _attack(world: World, kind: Attack, rng: random.Random) -> None:
    try:
        await kind(world, rng)
    except Exception as error:  # noqa: BLE001  a fault of the script is a finding too
        world.ledger.find("script", f"{kind.__name__}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    orders = json.load(sys.stdin)
    json.dump(asyncio.run(storm(Target(**orders.pop("target")), **orders)), sys.stdout)
