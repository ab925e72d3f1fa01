"""Loads and unloads on the admin port, by its own API and by vLLM's routes, of good and of poisonous adapters."""

import json
import random
from typing import Any

from soak.hostile.client import Answer, ask, undocumented_admin
from soak.hostile.world import World


async def churn(world: World, rng: random.Random) -> int:
    """One call; a few are under way at a time."""
    async with world.admin_calls:
        how = rng.choices((_put, _delete, _load, _unload, _poison, _poison, _resolve, _odd), (6, 3, 3, 2, 3, 3, 2, 2))[
            0
        ]
        await how(world, rng)
    return 1


async def admin(world: World, kind: str, method: str, path: str, body: Any = None) -> Answer:
    """Call the admin port, count the answer and note an undocumented one."""
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {world.target.admin_token}"}
    answer = await ask(world.session, f"{world.target.admin_url}{path}", data, method=method, headers=headers)
    world.ledger.count(kind, str(answer.status))
    wrong = undocumented_admin(answer)
    if wrong is not None:
        world.ledger.find(kind, f"{wrong}\n  asked: {method} {path} {(data or b'')[:400]!r}")
    return answer


def _source(rng: random.Random, names: list[str]) -> dict[str, Any]:
    return {"source": {"name": "volume", "path": rng.choice(names)}, "pinned": rng.random() < 0.05}


async def _put(world: World, rng: random.Random) -> None:
    """New content, or the same, for a name that comes and goes."""
    places = [*world.target.noise, *world.target.churn]
    await admin(world, "put", "PUT", f"/admin/v1/adapters/{rng.choice(world.target.churn)}", _source(rng, places))


async def _delete(world: World, rng: random.Random) -> None:
    name = rng.choice(world.target.churn)
    await admin(world, "delete", "DELETE", f"/admin/v1/adapters/{name}?drain_timeout_seconds={rng.choice((0, 1, 5))}")


async def _load(world: World, rng: random.Random) -> None:
    """By vLLM's route; the path is one below the mount."""
    body = {
        "lora_name": rng.choice(world.target.churn),
        "lora_path": str(
            world.volume
            / rng.choice([*world.target.noise, *world.target.churn, "none", "../..", rng.choice(world.target.poison)])
        ),
        "load_inplace": rng.random() < 0.5,
    }
    await admin(world, "vllm load", "POST", "/v1/load_lora_adapter", body)


async def _unload(world: World, rng: random.Random) -> None:
    await admin(world, "vllm unload", "POST", "/v1/unload_lora_adapter", {"lora_name": rng.choice(world.target.churn)})


async def _poison(world: World, rng: random.Random) -> None:
    """What must be refused, under a name of its own or of one that answers."""
    poison = rng.choice(world.target.poison)
    name = rng.choice([f"poison-{poison}", *world.target.churn])
    answer = await admin(world, "poison", "PUT", f"/admin/v1/adapters/{name}", _source(rng, [poison]))
    if 200 <= answer.status < 300:
        world.ledger.find("poison", f"{poison} was taken as {name}: {answer.text[:300]}")


async def _resolve(world: World, rng: random.Random) -> None:
    place = rng.choice([*world.target.noise, *world.target.poison, "none", "a/../b", "x" * 3000, "\x00"])
    await admin(world, "resolve", "POST", "/admin/v1/resolve", {"source": {"name": "volume", "path": place}})


async def _odd(world: World, rng: random.Random) -> None:
    """Calls that are none."""
    path = rng.choice(["/admin/v1/adapters/", "/admin/v1/adapters/a b", "/admin/v1/adapters/" + "n" * 500, "/admin/v1/resolve",
                       "/admin/v1/adapters", "/v1/load_lora_adapter", "/admin/v1/state?after=x", "/admin/v1/adapters/tiny",
                       "/admin/v1/adapters/%00", "/admin/v1/state?after=1&wait_seconds=1e9"])  # fmt: skip
    body = rng.choice(
        [b"", b"[]", b"{", b'{"source": {}}', b'{"lora_name": 7}', b"[" * 100_000, b'{"fence": "x"}', b"\xff\xfe"]
    )
    await admin(world, "odd", rng.choice(["GET", "PUT", "POST", "PATCH"]), path, body)
