"""Calls that a request forces are calls, of its tools and with arguments of their schemas, from a model that knows none."""

import json
from typing import Any

import pytest
from openai import BadRequestError
from support.declared_pod import DeclaredPod

TEMPLATE = "{{ tools[0]['type'] }}{{ messages[-1]['content'] }}{# <tool_call> #}"
MISTRAL = "{{ tools[0]['type'] }}{{ messages[-1]['content'] }}{# [TOOL_CALLS] #}"
LLAMA = "{{ tools[0]['type'] }}{{ messages[-1]['content'] }}{# <|python_tag|> #}"
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"$ref": "#/$defs/City"},
                    "days": {"type": "integer", "minimum": 1, "maximum": 9},
                },
                "required": ["city", "days"],
                "additionalProperties": False,
                "$defs": {"City": {"enum": ["Rome", "Oslo"]}},
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
    },
]
USER: Any = [{"role": "user", "content": "one two"}]


@pytest.mark.parametrize("template", [TEMPLATE, MISTRAL, LLAMA])
@pytest.mark.parametrize("stream", [False, True])
def test_forced_calls_are_calls_of_the_tools(declared: DeclaredPod, template: str, stream: bool) -> None:
    named: Any = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        asked: Any = {
            "model": "tiny",
            "messages": USER,
            "tools": TOOLS,
            "tool_choice": choice,
            "max_tokens": 150,
            "seed": 5,
        }
        asked |= {"parallel_tool_calls": False, "extra_body": {"chat_template": template}}
        with declared.pod.openai() as client:
            if stream:
                chunks = [chunk for chunk in client.chat.completions.create(**asked, stream=True) if chunk.choices]
                deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
                functions = [call.function for call in deltas if call.function is not None]
                name = "".join(function.name or "" for function in functions)
                arguments = "".join(function.arguments or "" for function in functions)
                finish = chunks[-1].choices[0].finish_reason
            else:
                answer = client.chat.completions.create(**asked).choices[0]
                (call,) = answer.message.tool_calls or ()
                name, arguments, finish = call.function.name, call.function.arguments, answer.finish_reason
        assert finish == ("stop" if choice is named else "tool_calls")
        assert name in (("weather",) if choice is named else ("weather", "time"))
        given = json.loads(arguments)
        if name == "weather":
            assert given["city"] in ("Rome", "Oslo")
            assert 1 <= given["days"] <= 9
        else:
            assert given == {}


def test_a_schema_that_cannot_be_enforced_is_a_400_that_names_the_keyword(declared: DeclaredPod) -> None:
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "array", "uniqueItems": True}}}]
    asked: Any = {"model": "tiny", "messages": USER, "tools": tools, "extra_body": {"chat_template": TEMPLATE}}
    with declared.pod.openai() as client:
        with pytest.raises(BadRequestError) as refused:
            client.chat.completions.create(**asked, tool_choice="required")
        assert refused.value.param == "tools"
        assert "uniqueItems" in refused.value.message
        client.chat.completions.create(**asked, max_tokens=3)
