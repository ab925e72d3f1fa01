"""Cases of OpenAI's own client, with nothing but a URL changed."""

from typing import Any, Literal

import driving
from driving import case
from openai import APIStatusError, AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

ASKED = "one two three"
MESSAGES: Any = [{"role": "system", "content": "one"}, {"role": "user", "content": ASKED}]
FORECAST: Any = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "forecast", "strict": True, "parameters": FORECAST}},
]
NAMED: Any = {"type": "function", "function": {"name": "forecast"}}
GREEDY: Any = {"model": "red", "temperature": 0}
OPTIONS: Any = {"api_key": "none", "max_retries": 0, "timeout": 120}


class Weather(BaseModel):
    """What the weather is."""

    city: Literal["Rome", "Oslo"]
    days: int = Field(ge=1, le=9)


def client(url: str) -> OpenAI:
    """As people make it."""
    return OpenAI(base_url=f"{url}/v1", **OPTIONS)


def chatted(url: str, **fields: Any) -> Any:
    """A whole answer to the messages."""
    return client(url).chat.completions.create(**{"messages": MESSAGES, "max_tokens": 12, **GREEDY, **fields})


def brief(url: str) -> dict[str, Any]:
    """Of answers that are JSON."""
    return {"messages": MESSAGES, "max_tokens": 120, "logit_bias": {str(driving.closing(url)): 100}, **GREEDY}


def told(completion: Any) -> dict[str, Any]:
    """What an answer of one choice says."""
    (choice,) = completion.choices
    usage = completion.usage
    return {
        "text": choice.message.content,
        "finish": choice.finish_reason,
        "model": completion.model,
        "usage": [usage.prompt_tokens, usage.completion_tokens] if usage else None,
        "calls": [[call.function.name, call.function.arguments] for call in choice.message.tool_calls or ()],
    }


@case
def chat(url: str) -> Any:
    return told(chatted(url))


@case
def chat_of_the_base(url: str) -> Any:
    return told(chatted(url, model="tiny"))


@case
async def async_chat(url: str) -> Any:
    async with AsyncOpenAI(base_url=f"{url}/v1", **OPTIONS) as made:
        return told(await made.chat.completions.create(messages=MESSAGES, max_tokens=12, **GREEDY))


@case
def stream(url: str) -> Any:
    chunks = list(chatted(url, stream=True, stream_options={"include_usage": True}))
    return {
        "text": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        "usages": [[one.usage.prompt_tokens, one.usage.completion_tokens] for one in chunks if one.usage],
        "is_streamed": len(chunks) > 3,
    }


@case
async def async_stream(url: str) -> Any:
    async with AsyncOpenAI(base_url=f"{url}/v1", **OPTIONS) as made:
        chunks = await made.chat.completions.create(messages=MESSAGES, max_tokens=12, stream=True, **GREEDY)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices])


@case
def stream_of_events(url: str) -> Any:
    """The helper that adds the chunks up; it wants an answer that was not cut by `max_tokens`."""
    stop = chatted(url).choices[0].message.content[3:5]
    asked = {"messages": MESSAGES, "max_tokens": 12, "stop": stop, "stream_options": {"include_usage": True}, **GREEDY}
    with client(url).chat.completions.stream(**asked) as events:
        deltas = [event.delta for event in events if event.type == "content.delta"]
        return {**told(events.get_final_completion()), "joined": "".join(deltas)}


@case
def several_choices(url: str) -> Any:
    return [one.message.content for one in chatted(url, n=3, temperature=1.0, seed=7).choices]


@case
def several_choices_streamed(url: str) -> Any:
    texts = [""] * 3
    for chunk in chatted(url, n=3, temperature=1.0, seed=7, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    return texts


@case
def logprobs(url: str) -> Any:
    content = chatted(url, logprobs=True, top_logprobs=2, max_tokens=4).choices[0].logprobs.content
    return [[one.logprob, len(one.top_logprobs), one.top_logprobs[0].logprob] for one in content]


@case
def stop(url: str) -> Any:
    whole = chatted(url).choices[0].message.content
    cut = chatted(url, stop=[whole[3:5]]).choices[0]
    return {"whole": whole, "stop": whole[3:5], "cut": cut.message.content, "finish": cut.finish_reason}


@case
def options(url: str) -> Any:
    """What goes out with a request and has a meaning here."""
    fields: Any = {
        "max_tokens": None,
        "max_completion_tokens": 5,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.5,
        "seed": 3,
        "top_p": 0.9,
        "logit_bias": {"65": -100},
        "reasoning_effort": "low",
        "service_tier": "auto",
        "store": False,
        "metadata": {"who": "me"},
        "user": "me",
        "extra_body": {"top_k": 5, "min_p": 0.01},
        "extra_headers": {"x-own": "1"},
    }
    return told(chatted(url, **{name: value for name, value in fields.items() if value is not None}, max_tokens=None))


@case
def raw_response(url: str) -> Any:
    asked = {"messages": MESSAGES, "max_tokens": 12, "extra_headers": {"x-request-id": "mine"}, **GREEDY}
    answer = client(url).chat.completions.with_raw_response.create(**asked)
    return {
        "status": answer.status_code,
        "id": answer.headers["x-request-id"],
        "adapter": answer.headers["x-lorafleet-adapter"],
        "parsed": told(answer.parse()),
    }


@case
def streaming_response(url: str) -> Any:
    asked = {"messages": MESSAGES, "max_tokens": 12, "stream": True, **GREEDY}
    with client(url).chat.completions.with_streaming_response.create(**asked) as answer:
        lines = [line for line in answer.iter_lines() if line]
        return {"type": answer.headers["content-type"].partition(";")[0], "last": lines[-1], "many": len(lines) > 3}


@case
def parsed(url: str) -> Any:
    answer = client(url).chat.completions.parse(response_format=Weather, **brief(url))
    return answer.choices[0].message.parsed.model_dump()


@case
def parsed_stream(url: str) -> Any:
    with client(url).chat.completions.stream(response_format=Weather, **brief(url)) as events:
        return events.get_final_completion().choices[0].message.parsed.model_dump()


@case
def json_object(url: str) -> Any:
    answer = client(url).chat.completions.create(response_format={"type": "json_object"}, **brief(url))
    return answer.choices[0].message.content


@case
def tools_named(url: str) -> Any:
    return told(client(url).chat.completions.create(tools=TOOLS, tool_choice=NAMED, **brief(url)))


@case
def tools_parsed(url: str) -> Any:
    answer = client(url).chat.completions.parse(tools=TOOLS, tool_choice="required", **brief(url))
    return answer.choices[0].message.tool_calls[0].function.parsed_arguments


@case
def tools_streamed(url: str) -> Any:
    asked = {"tools": TOOLS, "tool_choice": NAMED, **brief(url)}
    with client(url).chat.completions.stream(**asked) as events:
        deltas = [event.arguments_delta for event in events if event.type.endswith("arguments.delta")]
        return {**told(events.get_final_completion()), "joined": "".join(deltas)}


@case
def tools_auto(url: str) -> Any:
    return told(chatted(url, tools=TOOLS))


@case
def tools_round(url: str) -> Any:
    made = client(url).chat.completions
    called = made.create(tools=TOOLS, tool_choice=NAMED, **brief(url)).choices[0].message
    says = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "sun"}
    return told(chatted(url, messages=[MESSAGES[1], called, says], tools=TOOLS))


@case
def completion(url: str) -> Any:
    made = client(url).completions
    asked: Any = {"max_tokens": 8, **GREEDY}
    choices = made.create(prompt=[ASKED, "x"], **asked).choices
    chunks = made.create(prompt=ASKED, stream=True, **asked)
    return {
        "whole": made.create(prompt=ASKED, **asked).choices[0].text,
        "streamed": "".join(chunk.choices[0].text for chunk in chunks if chunk.choices),
        "many": [choice.text for choice in choices],
    }


@case
def completion_echo(url: str) -> Any:
    answer = client(url).completions.create(prompt=ASKED, echo=True, logprobs=1, max_tokens=0, **GREEDY)
    told = answer.choices[0].logprobs
    return {"text": answer.choices[0].text, "first": told.token_logprobs[0], "rest": told.token_logprobs[1:]}


@case
def completion_best_of(url: str) -> Any:
    asked: Any = {"model": "red", "temperature": 1.0, "seed": 1, "max_tokens": 6}
    return [one.text for one in client(url).completions.create(prompt=ASKED, n=2, best_of=3, **asked).choices]


def said(response: Any) -> dict[str, Any]:
    """What a response says."""
    return {
        "text": response.output_text,
        "status": response.status,
        "usage": [response.usage.input_tokens, response.usage.output_tokens],
        "calls": [[item.name, item.arguments] for item in response.output if item.type == "function_call"],
    }


RESPONSE: Any = {"instructions": "one", "input": ASKED, "max_output_tokens": 16, **GREEDY}


@case
def responses(url: str) -> Any:
    return said(client(url).responses.create(**RESPONSE))


@case
def responses_streamed(url: str) -> Any:
    with client(url).responses.stream(**RESPONSE) as events:
        seen = list(events)
        deltas = [event.delta for event in seen if event.type == "response.output_text.delta"]
        ended = seen[-1]
        return {**said(ended.response), "joined": "".join(deltas), "last": ended.type, "is_streamed": len(deltas) > 3}


@case
async def async_responses(url: str) -> Any:
    async with AsyncOpenAI(base_url=f"{url}/v1", **OPTIONS) as made:
        return said(await made.responses.create(**RESPONSE))


@case
def responses_tools(url: str) -> Any:
    tool: Any = {"type": "function", "name": "forecast", "strict": True, "parameters": FORECAST}
    named: Any = {"type": "function", "name": "forecast"}
    made = {**RESPONSE, "max_output_tokens": 120}
    return said(client(url).responses.create(tools=[tool], tool_choice=named, **made))["calls"]


@case
def embeddings(url: str) -> Any:
    """The client asks for base64 by itself, and takes it apart."""
    made = client(url).embeddings
    many = made.create(model="red", input=[ASKED, "x"])
    floats = made.create(model="red", input=ASKED, encoding_format="float").data[0].embedding
    return {
        "lengths": [round(sum(one * one for one in data.embedding), 3) for data in many.data],
        "alike": driving.near(many.data[0].embedding, floats),
        "tokens": many.usage.prompt_tokens,
        "fewer": len(made.create(model="tiny", input=ASKED, dimensions=5).data[0].embedding),
    }


@case
def models(url: str) -> Any:
    return sorted(model.id for model in client(url).models.list())


@case
def model_with_a_slash(url: str) -> Any:
    made = client(url)
    return {"model": made.models.retrieve("team/blue").id, "answer": chatted(url, model="team/blue").model}


def of_status(url: str, **fields: Any) -> None:
    """Let an error through once its fields are what OpenAI's documents promise."""
    try:
        chatted(url, **fields)
    except APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        if not body.keys() >= {"message", "type", "param", "code"} or not error.request_id:
            raise ValueError(f"{error.response.headers} {error.body}") from error
        raise


@case
def no_such_model(url: str) -> Any:
    of_status(url, model="nobody")


@case
def no_such_model_to_retrieve(url: str) -> Any:
    client(url).models.retrieve("team/nobody")


@case
def bad_value(url: str) -> Any:
    of_status(url, temperature=9)


@case
def unknown_field(url: str) -> Any:
    of_status(url, extra_body={"temprature": 1})


@case
def too_long(url: str) -> Any:
    of_status(url, messages=[{"role": "user", "content": "one two " * 300}])


@case
def image(url: str) -> Any:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    of_status(url, messages=[{"role": "user", "content": [part]}])


@case
def unenforceable(url: str) -> Any:
    schema = {"type": "array", "uniqueItems": True}
    of_status(url, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})


@case
def cut_before_it_parses(url: str) -> Any:
    """The client's own error, by the reason for the end."""
    client(url).chat.completions.parse(response_format=Weather, **{**brief(url), "max_tokens": 2})


@case
def stored(url: str) -> Any:
    client(url).responses.create(store=True, **RESPONSE)


@case
def no_such_route(url: str) -> Any:
    client(url).moderations.create(input=ASKED)


if __name__ == "__main__":
    driving.main()
