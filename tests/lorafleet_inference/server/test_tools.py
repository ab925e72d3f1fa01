"""Tools in a chat: what the template sees, and what clients are answered. The engine answers with its prompt."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from support.canned_pod import CannedPod, canned_pod, model_without_weights

HERMES = "{% if tools %}{% endif %}{{ messages[-1]['content'] }}{# <tool_call> tool_calls #}"
THINKING = HERMES + "{# </think> #}"
SHOWN = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}{{ m | tojson }}{% endfor %}<tool_call>"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells it.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": True,
    },
}
TIME: Any = {"type": "function", "function": {"name": "time"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "canned"
    model_without_weights(folder)
    return folder


@pytest.fixture
async def served(model: Path) -> AsyncIterator[CannedPod]:
    (model / "chat_template.jinja").write_text(HERMES)
    async with canned_pod(model) as pod:
        yield pod


@pytest.fixture
async def client(served: CannedPod) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as made:
        yield made


def num_tokens(served: CannedPod, text: str) -> int:
    return len(served.pod.text.encode_now(text, add_special_tokens=False))


class Told:
    """What a stream says of one choice in the end."""

    def __init__(self, chunks: list[ChatCompletionChunk]) -> None:
        self.content, self.thought, self.calls, self.finish = "", "", dict[int, list[str]](), ""
        for choice in (chunk.choices[0] for chunk in chunks if chunk.choices):
            self.content += choice.delta.content or ""
            self.thought += getattr(choice.delta, "reasoning_content", None) or ""
            for call in choice.delta.tool_calls or ():
                assert call.function is not None
                if call.id is not None:
                    assert call.index == len(self.calls)
                    assert call.type == "function"
                    self.calls[call.index] = [call.id, call.function.name or "", ""]
                self.calls[call.index][2] += call.function.arguments or ""
            self.finish = choice.finish_reason or self.finish


def of_whole(answer: ChatCompletion) -> tuple[str | None, list[tuple[str, str]], str]:
    choice = answer.choices[0]
    calls: Any = choice.message.tool_calls or []
    return choice.message.content, [(one.function.name, one.function.arguments) for one in calls], choice.finish_reason


async def test_calls_are_parsed_in_whole_answers_and_in_streams(served: CannedPod, client: AsyncOpenAI) -> None:
    text = f"Let me see. {CALL}\n{CALL}"
    asked: Any = {
        "model": "base",
        "messages": [{"role": "user", "content": text}],
        "tools": [WEATHER, TIME],
        "max_tokens": num_tokens(served, text) + 5,
        "extra_body": {"stop": "</tool_call>L"},
    }
    call = ("weather", '{"city": "Köln"}')
    whole = await client.chat.completions.create(**asked)
    assert of_whole(whole) == ("Let me see. ", [call, call], "tool_calls")
    told = Told([chunk async for chunk in await client.chat.completions.create(**asked, stream=True)])
    assert (told.content, [tuple(one[1:]) for one in told.calls.values()]) == ("Let me see. ", [call, call])
    assert told.finish == "tool_calls"
    ids = [one[0] for one in told.calls.values()] + [one.id for one in whole.choices[0].message.tool_calls or ()]
    assert len(set(ids)) == len(ids)


async def test_only_calls_have_no_content(served: CannedPod, client: AsyncOpenAI) -> None:
    asked: Any = {
        "model": "base",
        "messages": [{"role": "user", "content": CALL}],
        "extra_body": {"stop": "</tool_call><"},
    }
    asked["max_tokens"] = num_tokens(served, CALL) + 5
    whole = await client.chat.completions.create(**asked, tools=[WEATHER])
    assert of_whole(whole) == (None, [("weather", '{"city": "Köln"}')], "tool_calls")
    named: Any = {"type": "function", "function": {"name": "weather"}}
    whole = await client.chat.completions.create(**asked, tools=[WEATHER], tool_choice=named)
    assert of_whole(whole)[2] == "stop", "as OpenAI says it where the call was named"
    whole = await client.chat.completions.create(**asked, tools=[WEATHER], tool_choice="none")
    assert of_whole(whole) == (CALL.removesuffix("</tool_call>"), [], "stop")
    whole = await client.chat.completions.create(**asked)
    assert of_whole(whole) == (CALL.removesuffix("</tool_call>"), [], "stop")


async def test_an_answer_that_is_cut_off_says_so(served: CannedPod, client: AsyncOpenAI) -> None:
    asked: Any = {
        "model": "base",
        "messages": [{"role": "user", "content": CALL}],
        "tools": [WEATHER],
        "max_tokens": num_tokens(served, CALL[: CALL.index("Köln")]),
    }
    content, calls, finish = of_whole(await client.chat.completions.create(**asked))
    assert (content, finish) == (None, "length")
    assert [name for name, _ in calls] == ["weather"]
    assert calls[0][1] == '{"city": "'


async def test_reasoning_is_told_from_content_and_calls(model: Path) -> None:
    (model / "chat_template.jinja").write_text(THINKING)
    async with canned_pod(model) as served, AsyncOpenAI(base_url=f"{served.url}/v1", api_key="-") as client:
        text = f"<think>\nHm.\n</think>\n\nSo: {CALL}"
        asked: Any = {"model": "base", "messages": [{"role": "user", "content": text}], "tools": [WEATHER]}
        asked |= {"max_tokens": num_tokens(served, text) + 5, "extra_body": {"stop": "</tool_call><"}}
        whole = await client.chat.completions.create(**asked)
        assert of_whole(whole) == ("So: ", [("weather", '{"city": "Köln"}')], "tool_calls")
        assert whole.choices[0].message.model_extra == {"reasoning_content": "Hm."}
        told = Told([chunk async for chunk in await client.chat.completions.create(**asked, stream=True)])
        assert (told.thought, told.content, told.finish) == ("Hm.", "So: ", "tool_calls")


async def test_the_template_sees_tools_and_earlier_calls(model: Path) -> None:
    (model / "chat_template.jinja").write_text(SHOWN)
    async with canned_pod(model) as served, AsyncOpenAI(base_url=f"{served.url}/v1", api_key="-") as client:
        messages: Any = [
            {"role": "user", "content": "?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
                ],
            },
            {"role": "tool", "content": "wet", "tool_call_id": "c1"},
        ]
        asked: Any = {"model": "base", "messages": messages, "tools": [WEATHER, TIME], "tool_choice": "none"}
        asked["max_tokens"] = 1000
        text = (await client.chat.completions.create(**asked)).choices[0].message.content or ""
        shown = text[: text.index("<tool_call>")]
        call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
        assert shown == "".join(
            json.dumps(message, ensure_ascii=False)
            for message in (
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "wet", "tool_call_id": "c1"},
            )
        ), "switched off, tools are not shown"
        sampled = await client.chat.completions.create(**{**asked, "tool_choice": "auto", "max_tokens": 30})
        assert sampled.usage is not None
        rendered = await served.pod.text.templates.find(None, None)
        assert rendered.source == SHOWN
        assert sampled.usage.prompt_tokens > num_tokens(served, shown) + 20


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tool_choice": "required"}, "tool_choice", "no tools"),
    ({"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "'x'"),
    ({"tools": [TIME, TIME]}, "tools", "same name"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "function"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "pattern"),
    ({"tools": [TIME], "response_format": {"type": "json_object"}}, "response_format", "tools"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "tool_call_id"),
    ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages[0]", "role tool"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "["}}]}]},
        "messages[0].tool_calls[0].function.arguments",
        "JSON object",
    ),
    (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a":' + "[" * 50_000}}],
                }
            ]
        },
        "messages[0].tool_calls[0].function.arguments",
        "JSON object",
    ),
]


@pytest.mark.parametrize(("fields", "param", "named"), REFUSED)
async def test_what_cannot_be_is_a_400_that_names_the_field(
    client: AsyncOpenAI, fields: dict[str, Any], param: str, named: str
) -> None:
    asked: Any = {"model": "base", "messages": [{"role": "user", "content": "x"}], **fields}
    with pytest.raises(BadRequestError) as refused:
        await client.chat.completions.create(**asked)
    assert refused.value.param == param
    assert named in refused.value.message


async def test_templates_without_a_place_for_tools_say_so(model: Path) -> None:
    tools: Any = [TIME]
    answered: Any = [
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
    ]
    user: Any = [{"role": "user", "content": "x"}]
    cases: list[tuple[str, dict[str, Any], str, str]] = [
        ("{{ messages[-1]['content'] }}{# <tool_call> #}", {"messages": user, "tools": tools}, "tools", "no place"),
        ("{{ messages[-1]['content'] }}{{ tools }}", {"messages": user, "tools": tools}, "tools", "--tool-call-parser"),
        ("{{ messages[-1]['content'] }}", {"messages": answered}, "messages", "no place"),
    ]
    for template, fields, param, named in cases:
        (model / "chat_template.jinja").write_text(template)
        async with canned_pod(model) as served, AsyncOpenAI(base_url=f"{served.url}/v1", api_key="-") as client:
            with pytest.raises(BadRequestError) as refused:
                await client.chat.completions.create(model="base", max_tokens=3, **fields)
            assert refused.value.param == param
            assert named in refused.value.message
