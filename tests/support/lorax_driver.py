"""Runs LoRAX's own client in the clients' environment: calls in, JSON on stdin; what came of each out, JSON on stdout."""

import asyncio
import json
import sys
from typing import Any

from lorax import AsyncClient, Client  # type: ignore[import-not-found]
from lorax.types import MergedAdapters  # type: ignore[import-not-found]


def told(answer: Any) -> Any:
    return json.loads(answer.model_dump_json())


def fields_of(call: dict[str, Any]) -> dict[str, Any]:
    fields = dict(call["fields"])
    if "merged_adapters" in fields:
        fields["merged_adapters"] = MergedAdapters(**fields["merged_adapters"])
    return fields


def called(url: str, call: dict[str, Any]) -> Any:
    client = Client(url, headers=call["headers"], timeout=60)
    answer = getattr(client, call["method"])(call["prompt"], **fields_of(call))
    return told(answer) if call["method"] in ("generate", "embed") else [told(event) for event in answer]


async def called_async(url: str, call: dict[str, Any]) -> Any:
    client = AsyncClient(url, headers=call["headers"], timeout=1)
    fields = fields_of(call)
    if call["method"] == "generate":
        return told(await client.generate(call["prompt"], **fields))
    return [told(event) async for event in client.generate_stream(call["prompt"], **fields)]


def outcome(url: str, call: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"answer": asyncio.run(called_async(url, call)) if call["is_async"] else called(url, call)}
    except Exception as error:  # noqa: BLE001  the test says which one it has to be
        return {"error": f"{type(error).__module__}.{type(error).__name__}", "message": str(error)}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    json.dump([outcome(given["url"], call) for call in given["calls"]], sys.stdout)
