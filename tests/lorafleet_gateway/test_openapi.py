"""The gateway describes what it answers."""

import json

import schemathesis

from lorafleet_common.keys.guard import Guard
from lorafleet_contract.keys import KeyList
from lorafleet_contract.names import HEADER_REVISION, HEADER_SESSION
from lorafleet_gateway import errors, metrics
from lorafleet_gateway.front.openapi import FILE

from .conftest import World

DOCUMENT = json.loads(FILE.read_bytes())


async def test_it_describes_every_route(world: World) -> None:
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    client = await world.open(waits=False)
    answer = await client.get("/openapi.json")
    assert (answer.status_code, answer.json()) == (200, DOCUMENT)
    assert "security" not in DOCUMENT
    assert world.door is not None
    told = {(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item}
    assert told == world.door.routes


async def test_where_keys_are_asked_for_it_says_so_and_is_shown_without_one(world: World) -> None:
    client = await world.open(waits=False, guard=Guard(KeyList(keys=[]), metrics.KEYS))
    told = (await client.get("/openapi.json")).json()
    assert told["security"] == [{"key": []}]
    for path, item in told["paths"].items():
        for method, operation in item.items():
            answer = await client.request(method.upper(), path.replace("{name}", "french"), content=b"{")
            assert (answer.status_code != 401) == ("security" in operation), (method, path)


def test_it_tells_the_errors_of_its_own() -> None:
    generation = DOCUMENT["paths"]["/v1/completions"]["post"]["responses"]
    own = {str(kind.status) for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "status")}
    assert own - {"405"} <= set(generation)
    assert "pod took the request" in DOCUMENT["components"]["responses"]["OpenAI504"]["description"]
    assert "422" in DOCUMENT["paths"]["/generate"]["post"]["responses"]


def test_a_session_can_be_named_wherever_an_adapter_can() -> None:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            headers = {
                parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "header"
            }
            assert (HEADER_SESSION in headers) == (HEADER_REVISION in headers), (method, path)
    assert DOCUMENT["paths"]["/generate"]["post"]["parameters"][-1]["name"] == HEADER_SESSION
