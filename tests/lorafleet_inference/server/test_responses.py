"""The Responses API with OpenAI's client: items in, items and typed events out. The engine answers with its prompt."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError
from openai.types.responses import Response
from support.canned_pod import CannedPod, canned_pod, model_without_weights

TEMPLATE = "{% if tools %}{% endif %}{{ messages[-1]['content'] }}{# <tool_call> tool_calls </think> #}"
SHOWN = "{% for m in messages %}{{ m | tojson }}{% endfor %}{# tool_calls #}"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
TEXT = f"<think>\nHm.\n</think>\n\nSo: {CALL}"
WEATHER: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
STOP: Any = {"stop": "</tool_call><"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "canned"
    model_without_weights(folder)
    return folder


@pytest.fixture
async def served(model: Path) -> AsyncIterator[CannedPod]:
    (model / "chat_template.jinja").write_text(TEMPLATE)
    async with canned_pod(model) as pod:
        yield pod


@pytest.fixture
async def client(served: CannedPod) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as made:
        yield made


def num_tokens(served: CannedPod, text: str) -> int:
    return len(served.pod.text.encode_now(text, add_special_tokens=False))


def outline(response: Response) -> list[tuple[str, ...]]:
    """The items without their ids."""
    items: list[tuple[str, ...]] = []
    for item in response.output:
        assert item.id
        match item.type:
            case "message":
                items.append(("message", *(part.text for part in item.content if part.type == "output_text")))
            case "reasoning":
                items.append(("reasoning", *(part.text for part in item.content or ())))
            case "function_call":
                items.append(("function_call", item.name, item.arguments))
    return items


async def test_a_text_is_a_message(served: CannedPod, client: AsyncOpenAI) -> None:
    response = await client.responses.create(
        model="base",
        input="one two",
        instructions="Be short.",
        max_output_tokens=num_tokens(served, "one two"),
        temperature=0.5,
    )
    assert response.output_text == "one two"
    assert (response.status, response.incomplete_details and response.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert response.usage is not None
    assert response.usage.input_tokens == response.usage.output_tokens == num_tokens(served, "one two")
    assert (response.instructions, response.temperature, response.object) == ("Be short.", 0.5, "response")


async def test_whole_and_streamed_items_are_the_same(served: CannedPod, client: AsyncOpenAI) -> None:
    asked: Any = {"model": "base", "input": TEXT, "tools": [WEATHER], "extra_body": STOP}
    asked["max_output_tokens"] = num_tokens(served, TEXT) + 5
    whole = await client.responses.create(**asked)
    items = [("reasoning", "Hm."), ("message", "So: "), ("function_call", "weather", '{"city": "Köln"}')]
    assert outline(whole) == items
    assert whole.status == "completed"
    events: list[Any] = [event async for event in await client.responses.create(**asked, stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    assert outline(events[-1].response) == items
    assert events[-1].response.usage == whole.usage
    by_item: dict[int, list[Any]] = {}
    for event in events[2:-1]:
        by_item.setdefault(event.output_index, []).append(event)
    for index, mine in by_item.items():
        assert (mine[0].type, mine[-1].type) == ("response.output_item.added", "response.output_item.done")
        assert mine[-1].item == events[-1].response.output[index]
        told = "".join(event.delta for event in mine if event.type.endswith(".delta"))
        assert told == items[index][-1]
    assert sorted(by_item) == [0, 1, 2]


async def test_events_have_names_and_no_other_end(served: CannedPod) -> None:
    body = {"model": "base", "input": "one two", "max_output_tokens": 2, "stream": True}
    async with httpx.AsyncClient() as http:
        text = (await http.post(f"{served.url}/v1/responses", json=body)).text
    events = [event.split("\n") for event in text.strip().split("\n\n")]
    assert all(name == f"event: {json.loads(data.removeprefix('data: '))['type']}" for name, data in events)
    assert events[-1][0] == "event: response.incomplete"


async def test_logprobs_come_where_they_are_included(client: AsyncOpenAI) -> None:
    asked: Any = {"model": "base", "input": "one two", "max_output_tokens": 3}
    asked |= {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    response = await client.responses.create(**asked)
    part: Any = response.output[0]
    assert len(part.content[0].logprobs) == 3
    assert len(part.content[0].logprobs[0].top_logprobs) == 1


async def test_items_of_one_turn_are_one_message(model: Path) -> None:
    (model / "chat_template.jinja").write_text(SHOWN)
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "?"}]},
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": "So"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "x"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "y"}]},
    ]
    async with canned_pod(model) as served, AsyncOpenAI(base_url=f"{served.url}/v1", api_key="-") as client:
        text = (
            await client.responses.create(model="base", input=items, instructions="I", max_output_tokens=2000)
        ).output_text
    decoder, at, messages = json.JSONDecoder(), 0, []
    while len(messages) < 5:
        message, at = decoder.raw_decode(text, at)
        message.pop("thinking", None)  # transformers' other name of reasoning_content
        messages.append(message)
    calls = [
        {"id": name, "type": "function", "function": {"name": "f", "arguments": arguments}}
        for name, arguments in (("c1", {}), ("c2", {"a": 1}))
    ]
    assert messages == [
        {"role": "system", "content": "I"},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "So", "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "content": "x", "tool_call_id": "c1"},
        {"role": "tool", "content": "y", "tool_call_id": "c2"},
    ]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "c"}, "conversation"),
    ({"store": True}, "store"),
    ({"background": True}, "background"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type"),
    ({"input": [{"type": "computer_call_output"}]}, "input[0]"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"extra_body": {"typo": 1}}, "typo"),
    ({"extra_body": {"messages": []}}, "messages"),
    ({"max_output_tokens": 1 << 21}, "input"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "["}]}, "input"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
async def test_what_cannot_be_is_a_400_that_names_the_field(
    client: AsyncOpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequestError) as refused:
        await client.responses.create(**{"model": "base", "input": "x", **fields})
    assert refused.value.param == param
