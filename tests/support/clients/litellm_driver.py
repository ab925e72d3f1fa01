"""Cases of LiteLLM: `completion` and what stands beside it, with the prefixes `openai/` and `hosted_vllm/`."""

import copy
from typing import Any, Literal

import driving
import litellm
from driving import case
from pydantic import BaseModel, Field

ASKED = [{"role": "user", "content": "one two three"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "forecast",
            "description": "Tell the weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Rome", "Oslo"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
NAMED = {"type": "function", "function": {"name": "forecast"}}


class Weather(BaseModel):
    """What the weather is."""

    city: Literal["Rome", "Oslo"]
    days: int = Field(ge=1, le=9)


def given(url: str, prefix: str, **fields: Any) -> dict[str, Any]:
    """As people write it."""
    where = {"api_base": f"{url}/v1", "api_key": "none", "num_retries": 0, "timeout": 120}
    return {"model": f"{prefix}/red", "messages": ASKED, "temperature": 0, "max_tokens": 12, **where, **fields}


def told(response: Any) -> dict[str, Any]:
    """What an answer says."""
    (choice,) = response.choices
    calls = [[call.function.name, call.function.arguments] for call in choice.message.tool_calls or ()]
    return {
        "text": choice.message.content,
        "finish": choice.finish_reason,
        "usage": [response.usage.prompt_tokens, response.usage.completion_tokens],
        "model": response.model,
        "calls": calls,
    }


def brief(fields: dict[str, Any]) -> dict[str, Any]:
    """Of answers that are JSON."""
    url = fields["api_base"].removesuffix("/v1")
    return {**copy.deepcopy(fields), "max_tokens": 120, "logit_bias": {str(driving.closing(url)): 100}}


def add(name: str, run: Any, *prefixes: str, **fields: Any) -> None:
    """One case for each prefix."""
    for prefix in prefixes:

        def one(url: str, prefix: str = prefix) -> Any:
            return run(given(url, prefix, **copy.deepcopy(fields)))

        one.__name__ = f"{prefix}_{name}"
        case(one)


def brief_chat(fields: dict[str, Any]) -> Any:
    return told(litellm.completion(**brief(fields)))


def chat(fields: dict[str, Any]) -> Any:
    return told(litellm.completion(**fields))


def stream(fields: dict[str, Any]) -> Any:
    chunks = list(litellm.completion(**fields, stream=True, stream_options={"include_usage": True}))
    return {**told(litellm.stream_chunk_builder(chunks, messages=ASKED)), "is_streamed": len(chunks) > 3}


def brief_stream(fields: dict[str, Any]) -> Any:
    return stream(brief(fields))


async def achat(fields: dict[str, Any]) -> Any:
    return told(await litellm.acompletion(**fields))


async def astream(fields: dict[str, Any]) -> Any:
    chunks = [chunk async for chunk in await litellm.acompletion(**fields, stream=True)]
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def several(fields: dict[str, Any]) -> Any:
    return [choice.message.content for choice in litellm.completion(**fields).choices]


def stop(fields: dict[str, Any]) -> Any:
    whole = chat(fields)["text"]
    return {"whole": whole, "stop": whole[5:7], "cut": chat({**fields, "stop": [whole[5:7]]})["text"]}


def logprobs(fields: dict[str, Any]) -> Any:
    return [len(one["top_logprobs"]) for one in litellm.completion(**fields).choices[0].logprobs["content"]]


def text(fields: dict[str, Any]) -> Any:
    fields = {name: value for name, value in fields.items() if name != "messages"}
    response = litellm.text_completion(prompt="one two three", **fields)
    chunks = litellm.text_completion(prompt="one two three", **fields, stream=True)
    return {
        "whole": response.choices[0].text,
        "streamed": "".join(chunk.choices[0].text or "" for chunk in chunks if chunk.choices),
    }


def responses(fields: dict[str, Any]) -> Any:
    kept = {name: fields[name] for name in ("model", "api_base", "api_key", "temperature")}
    response = litellm.responses(input="one two three", max_output_tokens=16, **kept)
    return [part.text for item in response.output for part in item.content]


def embedding(fields: dict[str, Any]) -> Any:
    kept = {name: fields[name] for name in ("model", "api_base", "api_key")}
    answer = litellm.embedding(input=["one two three", "x"], **kept)
    return {
        "sizes": [len(one["embedding"]) for one in answer.data],
        "tokens": answer.usage.prompt_tokens,
        "model": answer.model,
    }


def tools_round(fields: dict[str, Any]) -> Any:
    called = litellm.completion(**brief(fields), tools=copy.deepcopy(TOOLS), tool_choice=NAMED).choices[0].message
    says = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "sun"}
    messages = [*ASKED, called.model_dump(), says]
    return told(litellm.completion(**{**fields, "messages": messages}, tools=copy.deepcopy(TOOLS)))


def alone(name: str, run: Any, **fields: Any) -> None:
    """What LiteLLM does alike for both prefixes."""
    add(name, run, "openai", **fields)


def both(name: str, run: Any, **fields: Any) -> None:
    """What LiteLLM makes ready in code of each prefix, and what is compared with it."""
    add(name, run, "openai", "hosted_vllm", **fields)


both("chat", chat)
both("stream", stream)
alone("achat", achat)
alone("astream", astream)
alone("several_choices", several, n=3, temperature=1.0, seed=4)
alone("logprobs", logprobs, logprobs=True, top_logprobs=2)
alone("stop", stop)
alone(
    "options",
    chat,
    seed=1,
    top_p=0.9,
    frequency_penalty=0.1,
    presence_penalty=0.1,
    logit_bias={"65": -100},
    user="me",
    extra_headers={"x-own": "1"},
    metadata={"who": "me"},
)
alone("max_completion_tokens", chat, max_tokens=None, max_completion_tokens=5)
alone("own_fields", chat, extra_body={"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1})
both("choice", chat, extra_body={"guided_choice": ["yes", "no"]})
both("structured", brief_chat, response_format=Weather)
alone("structured_stream", brief_stream, response_format=Weather)
both("tools_named", brief_chat, tools=TOOLS, tool_choice=NAMED)
alone("tools_required", brief_chat, tools=TOOLS, tool_choice="required")
alone("tools_auto", chat, tools=TOOLS)
alone("tools_streamed", brief_stream, tools=TOOLS, tool_choice=NAMED)
both("tools_round", tools_round)
both("reasoning_effort", chat, reasoning_effort="low")
alone("text", text)
alone("responses", responses)
both("embedding", embedding)
both("no_such_model", lambda fields: chat({**fields, "model": fields["model"].replace("red", "nobody")}))
both("too_long", chat, messages=[{"role": "user", "content": "one two " * 300}])
alone("bad_value", chat, temperature=9)
alone("unenforceable", chat, extra_body={"guided_json": {"type": "array", "uniqueItems": True}})

if __name__ == "__main__":
    driving.main()
