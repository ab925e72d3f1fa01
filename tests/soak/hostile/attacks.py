"""What others do on the public port with whole requests. Each attack returns how many requests it was."""

import asyncio
import json
import random
from typing import Any

from soak.hostile.client import ask
from soak.hostile.fields import CHAT, COMPLETIONS, WORDS, good, nested, strange, text_of
from soak.hostile.world import BASE, World

MAX_LONG_BYTES = 12_000_000
BURST_REQUESTS = 120


async def work(world: World, rng: random.Random) -> int:
    """A request that is in order; it is answered, or refused because too much is asked."""
    path, body = good(rng, world.some_model(rng), world.target.prompts)
    answer = await world.public("work", path, json.dumps(body).encode())
    if (
        answer.status == 400
        and (answer.error or {}).get("code") != "context_length_exceeded"
        and "@" not in body["model"]
    ):
        told = str((answer.error or {}).get("message"))
        if "chat template" not in told and "sequences and this server takes" not in told:
            world.ledger.find("work", f"a legal request is refused: {told}\n  asked: {json.dumps(body)[:800]}")
    return 1


async def fields(world: World, rng: random.Random) -> int:
    """A request with strange fields."""
    path, body = strange(rng, world.some_model(rng), world.target.prompts)
    await world.public("fields", path, body)
    return 1


async def wild(world: World, rng: random.Random) -> int:
    """A request of an adapter whose numbers overflow: not one token may come of it, with whatever sampling."""
    path, body = good(rng, rng.choice(world.target.wild), world.target.prompts)
    answer = await world.public("wild", path, json.dumps(body).encode())
    if answer.status == 200 and answer.error is None:
        world.ledger.find("wild", f"numbers that are not finite became an answer: {answer.text[:300]}")
    return 1


async def template(world: World, rng: random.Random) -> int:
    """A chat whose template does not come to an end, hoards memory, raises or leaves the text out."""
    text = rng.choice(("now", "now", "later")) + f" {rng.random()}"
    body = {"model": rng.choice(world.target.crafty), "max_tokens": 4, "messages": [{"role": "user", "content": text}]}
    await world.public("template", CHAT, json.dumps(body).encode())
    return 1


async def long_text(world: World, rng: random.Random) -> int:
    """A body of up to 12 MB; now and then of more than the server takes."""
    async with world.long_texts:
        size = int(10 ** rng.uniform(4, 7.08))
        if rng.random() < 0.02:
            size = 34_000_000
        path, body = _long(rng, min(size, MAX_LONG_BYTES) if size <= MAX_LONG_BYTES else size)
        model = rng.choice([BASE, *world.target.noise, *world.target.crafty])
        data = json.dumps({"model": model, "max_tokens": 4, **body}).encode()
        if len(data) <= 32 << 20:
            await world.public("long", path, data)
        else:  # the answer may come before the body has gone, and then the connection ends
            answer = await ask(world.session, f"{world.url}{path}", data)
            world.ledger.count("long", answer.outcome)
            if answer.status not in (0, 413):
                world.ledger.find("long", f"{answer.outcome} to a body of {len(data)} bytes")
    return 1


def _long(rng: random.Random, size: int) -> tuple[str, dict[str, Any]]:
    """A path and fields of about so many bytes."""
    unit = rng.choice(["x", " ", "one two ", "\n", "一", "😀", "a.", "<s>", "0", rng.choice(WORDS) + " "])
    text = unit * (size // len(unit.encode()))
    how = rng.randrange(8)
    if how == 0:
        return COMPLETIONS, {"prompt": text}
    if how == 1:
        return CHAT, {"messages": [{"role": "user", "content": text}]}
    if how == 2:
        return COMPLETIONS, {"prompt": [rng.randrange(400)] * (size // 4)}
    if how == 3:
        return CHAT, {"messages": [{"role": "user", "content": "a"}] * (size // 35)}
    if how == 4:
        return CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * (size // 30)}]}
    if how == 5:
        return COMPLETIONS, {"prompt": [text_of(rng, 40)] * min(200, 1 + size // 250)}
    if how == 6:
        return COMPLETIONS, {"prompt": "one", "logit_bias": {str(number): 1 for number in range(size // 14)}}
    return CHAT, {"messages": [{"role": "user", "content": "a"}], "metadata": [nested(50)] * (size // 120)}


async def burst(world: World, rng: random.Random) -> int:
    """Many requests of one adapter at once."""
    model = rng.choice([*world.target.noise, *world.target.churn, BASE])
    bodies = [good(rng, model, world.target.prompts) for _ in range(BURST_REQUESTS)]
    async with asyncio.TaskGroup() as group:
        for path, body in bodies:
            group.create_task(world.public("burst", path, json.dumps(body).encode()))
    return BURST_REQUESTS


READS = ("/health", "/ready", "/metrics", "/v1/models", "/v1/routes", "/v1/models/tenant", "/v1/models/none")
ODD_PATHS = (
    "/",
    "/v1",
    "/v1/completions/",
    "//v1/models",
    "/%00",
    "/v1/models/%ff%fe",
    "/v1/models/../../etc/passwd",
    "/é",
)


async def read(world: World, rng: random.Random) -> int:
    """Other routes, other methods, and long polls."""
    if rng.random() < 0.3:
        path = f"/v1/routes?after={rng.choice([0, 10**30, -1, 'x', 1 << 63])}&wait_seconds={rng.choice([0, 5, 1e9, -1, 'nan'])}"
        method = "GET"
    elif rng.random() < 0.5:
        path, method = rng.choice(READS), "GET"
    else:
        path = rng.choice((*READS, *ODD_PATHS, CHAT))
        method = rng.choice(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "LONGMETHODNAME"])
    answer = await ask(world.session, f"{world.url}{path}", b"{}" if method == "POST" else None, method=method)
    world.ledger.count("read", answer.outcome)
    if answer.status == 0 or answer.status >= 500:
        world.ledger.find("read", f"{answer.status} {method} {path}: {answer.text[:300]}")
    return 1
