"""What a body may hold is known before it is parsed, and no body of any shape keeps the event loop for long."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from lorafleet_common.json_values import MAX_ITEMS
from lorafleet_inference.errors import InvalidValue, RequestError
from lorafleet_inference.server.bodies import FREE_BYTES, BodyRoom
from lorafleet_inference.server.http import Endpoint, Exchange
from lorafleet_inference.server.reading import AT_ONCE_BYTES, Readers, read_json
from lorafleet_inference.server.requests import parse_chat, parse_completion
from lorafleet_inference.server.responses_request import ResponsesRequest
from lorafleet_inference.server.tokens import DetokenizeRequest

SIZE = 8_000_000
MOST = MAX_ITEMS - 9
"""Numbers of one list beside a few other fields."""


def test_token_ids_of_a_batch_of_long_prompts_are_taken() -> None:
    request = parse_completion(of(prompt=[[7] * 4096] * 100))
    assert [len(prompt) for prompt in request.prompts] == [4096] * 100


async def test_longer_bodies_are_read_beside_the_event_loop_and_small_ones_do_not_wait_for_large_ones() -> None:
    here, goes_on = threading.get_ident(), threading.Event()

    def parse(body: bytes) -> int:
        if len(body) > FREE_BYTES:
            assert goes_on.wait(30)
        return threading.get_ident()

    with contextlib.closing(Readers()) as readers:
        large = asyncio.ensure_future(readers.read(parse, b"x" * (FREE_BYTES + 1)))
        small = await readers.read(parse, b"x" * FREE_BYTES)
        assert await readers.read(parse, b"x" * AT_ONCE_BYTES) == here
        goes_on.set()
        assert len({here, small, await large}) == 3
        with pytest.raises(InvalidValue):
            await readers.read(parse_chat, b"{" * FREE_BYTES)


def of(**fields: Any) -> bytes:
    return json.dumps({"model": "a", **fields}).encode()


def ready_for_template(body: bytes) -> list[dict[str, Any]]:
    return [message.for_template(index) for index, message in enumerate(parse_chat(body).messages)]


def calls(arguments: str, number: int = 1) -> bytes:
    call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    return of(messages=[{"role": "assistant", "tool_calls": [call] * number}])


BODIES: list[tuple[str, Callable[[bytes], Any], Callable[[], bytes]]] = [
    ("messages", parse_chat, lambda: of(messages=[{"role": "user", "content": "a"}] * (SIZE // 35))),
    ("wrong messages", parse_chat, lambda: of(messages=[{}] * 20_000)),
    (
        "parts",
        parse_chat,
        lambda: of(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * (SIZE // 30)}]),
    ),
    ("wrong parts", parse_chat, lambda: of(messages=[{"role": "user", "content": [{}] * 20_000}])),
    ("token ids", parse_completion, lambda: of(prompt=[7] * (SIZE // 3))),
    ("as many token ids as may be", parse_completion, lambda: of(prompt=[7] * MOST)),
    ("numbers as choices of a form", parse_completion, lambda: of(prompt="a", guided_choice=[7] * MOST)),
    ("numbers as what is included", partial(read_json, ResponsesRequest), lambda: of(input="a", include=[7] * MOST)),
    ("wrong tokens to write out", partial(read_json, DetokenizeRequest), lambda: of(tokens=[-1] * MOST)),
    ("empty lines as a grammar", parse_completion, lambda: of(prompt="a", guided_grammar="\n" * 20_000)),
    ("wrong token ids", parse_completion, lambda: of(prompt=[-1] * (SIZE // 4))),
    ("numbers as stops", parse_completion, lambda: of(prompt="a", stop=[7] * (SIZE // 3))),
    ("lists as arguments of a call", ready_for_template, lambda: calls(f'{{"a":[{"[]," * (SIZE // 3)}1]}}')),
    ("lists as arguments of calls", ready_for_template, lambda: calls(f'{{"a":[{"[]," * 30_000}1]}}', number=100)),
    ("biases", parse_completion, lambda: of(prompt="a", logit_bias={str(number): 1 for number in range(SIZE // 14)})),
    ("lists in a passed field", parse_completion, lambda: of(prompt="a", metadata=[[[[[[]]]]]] * (SIZE // 16))),
    ("numbers in an unknown field", parse_completion, lambda: of(prompt="a", typo=[0] * (SIZE // 3))),
    ("fields", parse_completion, lambda: of(**{str(number): 0 for number in range(SIZE // 12)})),
    ("a text", parse_completion, lambda: of(prompt="one two " * (SIZE // 8))),
    ("a text of quotes", parse_completion, lambda: of(prompt='"' * (SIZE // 2))),
]


@pytest.mark.parametrize(("parse", "make_body"), [case[1:] for case in BODIES], ids=[case[0] for case in BODIES])
def test_a_body_of_any_shape_is_read_or_refused_at_once(
    parse: Callable[[bytes], Any], make_body: Callable[[], bytes]
) -> None:
    body = make_body()

    def cpu_seconds() -> float:
        began = time.process_time()
        with contextlib.suppress(RequestError):
            parse(body)
        return time.process_time() - began

    # not the first try's: on a machine that does much else what it works on has to come into the caches again
    assert any(cpu_seconds() < 0.6 for _ in range(3))


async def test_large_bodies_share_a_room_and_small_ones_do_not_wait_for_it() -> None:
    room, waits, going_on = BodyRoom(2_000_000), asyncio.Event(), asyncio.Event()

    async def handler(exchange: Exchange, body: bytes) -> None:
        if body.endswith(b"wait"):
            waits.set()
            await going_on.wait()
        await exchange.respond(Response(str(len(body))))

    app = Endpoint(handler, max_body_bytes=3_000_000, room=room)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pod") as client:
        first = asyncio.create_task(client.post("/", content=b"x" * 1_500_000 + b"wait"))
        await waits.wait()
        refused = await client.post("/", content=b"x" * 600_000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        small = await asyncio.gather(*[client.post("/", content=b"x" * FREE_BYTES) for _ in range(60)])
        assert {one.status_code for one in small} == {200}
        assert (await client.post("/", content=b"x" * 400_000)).status_code == 200
        assert (await client.post("/", content=b"x" * 3_000_001)).status_code == 413
        going_on.set()
        assert (await first).text == "1500004"
        assert room.used_bytes == 0
        assert (await client.post("/", content=b"x" * 1_900_000)).status_code == 200
    assert room.used_bytes == 0
