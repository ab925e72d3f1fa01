"""An answer of hundreds of calls is read apart from the event loop, or in pieces: counted, turn by turn."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, cast

import httpx
import msgspec
import pytest
from starlette.types import Message
from support.canned_pod import canned_pod, model_without_weights

from lorafleet_inference.engine.token_events import TokenLogprobs
from lorafleet_inference.server.answering import THREAD_CHARS, _Run
from lorafleet_inference.server.chat import Chat
from lorafleet_inference.server.generation import ChoiceDelta, Deltas, Generation, Timing
from lorafleet_inference.server.http import Exchange
from lorafleet_inference.server.parts import PIECE_CHARS, Parts
from lorafleet_inference.server.surface import Formatter
from lorafleet_inference.server.wire import CachedTokens, Usage
from lorafleet_inference.text.tool_calls import NOTATIONS
from lorafleet_inference.text.tool_calls.hermes import Hermes
from lorafleet_inference.text.tool_calls.notation import CallParser
from lorafleet_inference.text.tool_calls.parts import Part

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n'
NUM_CALLS = 300
TEMPLATE = "{% if tools %}{% endif %}{% for message in messages %}{{ message['content'] }}{% endfor %}"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


class Counting(Hermes):
    """Counts the characters that parsers are given: in all, at a time, and in one turn of the event loop by its own thread."""

    def __init__(self) -> None:
        self.turn = 0
        self.in_turn: Counter[int] = Counter()
        self.pieces: list[int] = []
        self.loop_thread = threading.get_ident()

    def parser(self) -> CallParser:
        return _Counting(self, super().parser())

    def took(self, number: int) -> None:
        self.pieces.append(number)
        if threading.get_ident() == self.loop_thread:
            self.in_turn[self.turn] += number

    async def turns(self) -> None:
        """Count them until cancelled."""
        while True:
            self.turn += 1
            await asyncio.sleep(0)


class _Counting(CallParser):
    def __init__(self, counting: Counting, parser: CallParser) -> None:
        self._counting, self._parser = counting, parser

    def push(self, text: str) -> list[Part]:
        self._counting.took(len(text))
        return self._parser.push(text)

    def finish(self) -> list[Part]:
        return self._parser.finish()


def names_of(path: str, document: dict[str, Any], events: Sequence[dict[str, Any]]) -> list[str]:
    """The calls that a client gets."""
    if path == "/v1/responses":
        output = events[-1]["response"]["output"] if events else document["output"]
        return [item["name"] for item in output if item["type"] == "function_call"]
    if not events:
        return [call["function"]["name"] for call in document["choices"][0]["message"]["tool_calls"]]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    calls = [call for delta in deltas for call in delta.get("tool_calls") or ()]
    return [call["function"]["name"] for call in calls if "id" in call]


@pytest.mark.parametrize(
    ("path", "stream"),
    [
        ("/v1/chat/completions", False),
        ("/v1/chat/completions", True),
        ("/v1/responses", False),
        ("/v1/responses", True),
    ],
)
async def test_no_turn_of_the_event_loop_reads_more_than_a_bounded_part_of_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, stream: bool
) -> None:
    counting = Counting()
    monkeypatch.setitem(NOTATIONS, "hermes", counting)
    tokenizer = model_without_weights(tmp_path / "canned")
    (tmp_path / "canned" / "chat_template.jinja").write_text(TEMPLATE)
    num_tokens = len(tokenizer.encode(CALL, add_special_tokens=False).ids) * NUM_CALLS
    if path == "/v1/responses":
        fields = {"input": CALL, "max_output_tokens": num_tokens, "tools": [{"type": "function", **TOOL["function"]}]}  # type: ignore[dict-item]
    else:
        messages = [{"role": "user", "content": CALL}]
        fields = {"messages": messages, "max_tokens": num_tokens, "tools": [TOOL]}
    async with (
        canned_pod(tmp_path / "canned", f"--at-once={num_tokens}", tool_call_parser="hermes") as served,
        httpx.AsyncClient(base_url=served.url, trust_env=False, timeout=120) as client,
    ):
        turns = asyncio.create_task(counting.turns())
        answer = await client.post(path, json={"model": "base", "stream": stream, **fields})
        turns.cancel()
    assert answer.status_code == 200, answer.text
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")] if stream else []
    names = names_of(path, {} if stream else answer.json(), [json.loads(line) for line in lines])
    assert names == ["f"] * NUM_CALLS
    assert sum(counting.pieces) == len(CALL) * NUM_CALLS > 2 * THREAD_CHARS
    assert max(counting.in_turn.values(), default=0) <= THREAD_CHARS
    assert max(counting.pieces) <= PIECE_CHARS


@pytest.mark.parametrize("name", ["hermes", "llama", "mistral"])
def test_what_a_call_costs_does_not_depend_on_how_many_follow(name: str) -> None:
    """A parser cuts off what it has read, and copies what follows: so it is given a little at a time."""
    one = '{"name": "f", "%s": {"x": 1}}'
    texts = {
        "hermes": f"<tool_call>\n{one % 'arguments'}\n</tool_call>\n" * 500,
        "llama": ";".join([one % "parameters"] * 500),
        "mistral": f"[TOOL_CALLS][{', '.join([one % 'arguments'] * 500)}]",
    }
    message, finish = Parts(NOTATIONS[name]).message(texts[name], "stop")
    assert finish == "tool_calls"
    assert isinstance(message.tool_calls, list)
    assert [call.function.name for call in message.tool_calls] == ["f"] * 500
    assert {call.function.arguments for call in message.tool_calls} == {'{"x": 1}'}


class Waited:
    """A generation of which all came together, as it does where the client reads slowly."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.timing = Timing(0.0, 0.0)
        self.prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}

    async def deltas(self, *_: object) -> AsyncGenerator[Deltas, None]:
        yield (ChoiceDelta(0, self.text, (), "stop", (), len(self.text), 0, 0),)

    def sent(self, _: Deltas) -> None:
        pass

    def usage(self, number: int) -> Usage:
        return Usage(number, 0, number, CachedTokens(0))


class Threads(Formatter):
    """Notes which thread writes events."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def whole(self, *_: object) -> list[msgspec.Struct]:
        raise NotImplementedError

    def usage_event(self, usage: Usage) -> Usage:
        return usage

    def events(self, delta: ChoiceDelta, _: object) -> list[msgspec.Struct]:
        self.seen.append(threading.get_ident())
        return [self.usage_event(Usage(len(delta.text), 0, 0, CachedTokens(0)))]


@pytest.mark.parametrize(
    ("num_chars", "has_parts", "in_loop"),
    [(THREAD_CHARS, True, True), (THREAD_CHARS + 1, True, False), (THREAD_CHARS + 1, False, True)],
)
async def test_a_long_piece_of_a_stream_is_read_in_a_thread(num_chars: int, has_parts: bool, in_loop: bool) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise NotImplementedError

    threads, generation = Threads(), cast("Generation", Waited("x" * num_chars))
    run = _Run(generation, [], [], threads, num_ranked=None, has_parts=has_parts)
    await run.stream(Exchange({"type": "http", "headers": []}, receive, send), Chat, include_usage=False)  # type: ignore[arg-type]
    assert (threads.seen == [threading.get_ident()]) is in_loop
    assert [message["type"] for message in sent] == ["http.response.start", *["http.response.body"] * 2]
    assert f'"prompt_tokens":{num_chars}'.encode() in sent[1]["body"]
