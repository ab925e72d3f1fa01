"""Those who misbehave, as a process of their own: what they are late with is not the pod's lateness.

Reads its orders as JSON from standard input and writes its ledger to standard output.
"""

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from soak.hostile import attacks, churn, crowd, forms, rude, surfaces
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
    surfaces.rare: 6,
    surfaces.response: 6,
    surfaces.lorax: 6,
    surfaces.tokens: 2,
    forms.form: 6,
    forms.tool: 2,
    crowd.crowd: 0.15,
    crowd.unread: 0.3,
}
"""How often each begins; a burst or a crowd counts as all its requests."""
SIZES: dict[Attack, int] = {attacks.burst: attacks.BURST_REQUESTS, crowd.crowd: crowd.CROWD}
KEEP_ALIVE_SECONDS = 1.0
"""Shorter than a crowd's connections wait, so that those, and not a client about to use it again, lose theirs to newer ones."""
TIMES_THE_RATE = 3.0
MAX_UNDER_WAY = 600
"""Attacks at a time; what would be more is not sent, and counted."""
CALM_SECONDS = 240.0
NICENESS = 10
"""They stand for other machines, and take little of the cores that the pod wants."""


async def storm(target: Target, rate: float, seconds: float, only: list[str]) -> dict[str, Any]:
    """Let attacks begin at random moments, at three times the rate; return the ledger when all have ended."""
    kinds = [kind for kind in MIX if not only or kind.__name__ in only]
    weights = [MIX[kind] for kind in kinds]
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
    async with aiohttp.ClientSession(connector=connector) as session:
        due = began = time.monotonic()
        world, rng = World(target, session, began + seconds), target.randomness("storm")
        while (now := time.monotonic()) < began + seconds:
            if due > now:
                await asyncio.sleep(min(due, began + seconds) - now)
                continue
            kind = rng.choices(kinds, weights)[0]
            due += SIZES.get(kind, 1) * rng.expovariate(TIMES_THE_RATE * rate)
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
    os.nice(NICENESS)
    orders = json.load(sys.stdin)
    json.dump(asyncio.run(storm(Target(**orders.pop("target")), **orders)), sys.stdout)
