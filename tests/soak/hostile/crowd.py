"""Clients that take connections and room of answers, and give nothing back: idle, half a head, half a body, and who reads nothing."""

import asyncio
import contextlib
import json
import random

from soak.hostile.fields import COMPLETIONS
from soak.hostile.rude import connection, request_of
from soak.hostile.world import World

CROWD = 100
HOLD_SECONDS = 20.0


async def crowd(world: World, rng: random.Random) -> int:
    """A hundred connections that stay; with those of others at the same time more than the pod takes."""
    async with world.crowds:
        await asyncio.gather(*[_stay(world, random.Random(rng.random())) for _ in range(CROWD)])
    return CROWD


async def _stay(world: World, rng: random.Random) -> None:
    how = rng.choice(("idle", "half a head", "half a body", "drop by drop", "between requests"))
    data = request_of(COMPLETIONS, b'{"model": "tiny", "prompt": "one", "max_tokens": 1}')
    sent = {
        "idle": b"",
        "half a head": data[: rng.randrange(1, 60)],
        "half a body": data[: -rng.randrange(1, 40)],
        "drop by drop": b"",
        "between requests": b"GET /health HTTP/1.1\r\nhost: pod\r\n\r\n",
    }[how]
    outcome = "closed by the pod"
    try:
        async with connection(world) as (reader, writer), asyncio.timeout(world.at_most(HOLD_SECONDS)):
            writer.write(sent)
            answer = await _wait(reader, writer, data if how == "drop by drop" else b"")
            outcome = answer or outcome
    except TimeoutError:
        outcome = "held"
    except OSError:
        pass
    world.ledger.count("crowd", f"{how}: {outcome}")
    if outcome.startswith("5") and outcome != "503":
        world.ledger.find("crowd", f"{how}: {outcome}")


async def _wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drops: bytes) -> str:
    """Return the status of an answer that ends a connection; "" if it was closed without one."""
    status = ""
    for place in range(len(drops)):
        writer.write(drops[place : place + 1])
        await asyncio.sleep(0.5)
    while data := await reader.read(4096):
        status = data[9:12].decode("latin-1") if data.startswith(b"HTTP/1.") else status
    return "" if status == "200" else status


async def unread(world: World, rng: random.Random) -> int:
    """Ask for as much as there can be, 128 choices with 20 log-probabilities a token, and read nothing of it."""
    body = {
        "model": rng.choice(world.target.noise),
        "prompt": "one",
        "max_tokens": rng.choice((20, 200)),
        "n": rng.choice((32, 64, 128)),
        "logprobs": 20,
        "stream": rng.random() < 0.7,
        "ignore_eos": True,
    }
    outcome = "held"
    with contextlib.suppress(OSError):
        async with world.slow_readers, connection(world, receive_buffer=2048) as (reader, writer):
            writer.write(request_of(COMPLETIONS, json.dumps(body).encode()))
            await asyncio.sleep(world.at_most(rng.uniform(1, HOLD_SECONDS)))
            if rng.random() < 0.5:  # what is left then
                async with asyncio.timeout(5):
                    status = (await reader.read(512))[9:12].decode("latin-1")
                outcome = status or "closed by the pod"
    world.ledger.count("unread", outcome)
    return 1
