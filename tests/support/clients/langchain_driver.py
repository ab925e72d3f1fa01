"""Cases of LangChain: `ChatOpenAI` and `OpenAI` of langchain-openai with nothing but a URL changed."""

from typing import Annotated, Any, Literal

import driving
from driving import case
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

ASKED = "one two three"
MESSAGES = [SystemMessage("one"), HumanMessage(ASKED)]


class Weather(BaseModel):
    """What the weather is."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Rome", "Oslo"]
    days: int = Field(ge=1, le=9)
    note: str | None = Field(max_length=3)


class Nothing(BaseModel):
    """All of it may be left out."""

    city: str | None = None


class Mood(TypedDict):
    """A schema as a typed dictionary."""

    mood: Literal["good", "bad"]


MOOD = {
    "title": "mood",
    "description": "A schema as it is.",
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}},
    "required": ["mood"],
    "additionalProperties": False,
}


@tool
def forecast(city: Literal["Rome", "Oslo"], days: Annotated[int, Field(ge=1, le=9)]) -> str:
    """Tell the weather of a city."""
    return f"{city}: {days} days of sun"


@tool
def now() -> str:
    """Tell the time."""
    return "noon"


def chat(url: str, **fields: Any) -> ChatOpenAI:
    """As people make it."""
    given = {"model": "red", "temperature": 0, "max_tokens": 12, "max_retries": 0, "timeout": 120, **fields}
    return ChatOpenAI(base_url=f"{url}/v1", api_key="none", **given)


def brief(url: str, **fields: Any) -> ChatOpenAI:
    """As `chat`, of answers that are JSON."""
    return chat(url, max_tokens=120, extra_body={"logit_bias": {driving.closing(url): 100}}, **fields)


def told(message: Any) -> dict[str, Any]:
    """What a message says."""
    usage = message.usage_metadata
    return {
        "text": message.text,
        "usage": [usage["input_tokens"], usage["output_tokens"]] if usage else None,
        "finish": message.response_metadata.get("finish_reason"),
        "model": message.response_metadata.get("model_name"),
        "calls": [{"name": call["name"], "args": call["args"], "id": bool(call["id"])} for call in message.tool_calls],
    }


def joined(chunks: list[Any]) -> Any:
    """The message that a stream comes to, as LangChain adds it up."""
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    return whole


@case
def invoke(url: str) -> Any:
    return told(chat(url).invoke(MESSAGES))


@case
def invoke_base(url: str) -> Any:
    return told(chat(url, model="tiny").invoke(ASKED))


@case
def stream(url: str) -> Any:
    chunks = list(chat(url, stream_usage=True).stream(MESSAGES))
    return {**told(joined(chunks)), "is_streamed": len(chunks) > 3}


@case
async def ainvoke(url: str) -> Any:
    return told(await chat(url).ainvoke(MESSAGES))


@case
async def astream(url: str) -> Any:
    return told(joined([chunk async for chunk in chat(url, stream_usage=True).astream(MESSAGES)]))


@case
def batch(url: str) -> Any:
    return [told(message) for message in chat(url).batch([ASKED, MESSAGES, "x"])]


@case
def several_choices(url: str) -> Any:
    (choices,) = chat(url, n=3, temperature=1.0, seed=7).generate([MESSAGES]).generations
    return [choice.text for choice in choices]


@case
def options(url: str) -> Any:
    """Every option of the class that goes out with a request and has a meaning here."""
    made = chat(
        url,
        frequency_penalty=0.5,
        presence_penalty=0.5,
        seed=3,
        top_p=0.9,
        stop=["zz"],
        logit_bias={65: -100},
        reasoning_effort="low",
        service_tier="auto",
        store=False,
        metadata={"who": "me"},
        default_headers={"x-own": "1"},
        model_kwargs={"user": "me"},
        extra_body={"top_k": 5, "min_p": 0.01},
    )
    return told(made.invoke(MESSAGES))


@case
def logprobs(url: str) -> Any:
    message = chat(url, logprobs=True, top_logprobs=2, max_tokens=4).invoke(MESSAGES)
    return [len(token["top_logprobs"]) for token in message.response_metadata["logprobs"]["content"]]


@case
def stop(url: str) -> Any:
    text = chat(url, model="red").invoke(MESSAGES).text
    return {"whole": text, "stop": text[3:5], "cut": chat(url).invoke(MESSAGES, stop=[text[3:5]]).text}


def structured(url: str, schema: Any, method: str, **fields: Any) -> Any:
    made = brief(url).with_structured_output(schema, method=method, **fields)
    answer = made.invoke(MESSAGES)
    return answer.model_dump() if isinstance(answer, BaseModel) else answer


@case
def structured_json_schema(url: str) -> Any:
    return structured(url, Weather, "json_schema")


@case
def structured_json_schema_strict(url: str) -> Any:
    return structured(url, Weather, "json_schema", strict=True)


@case
def structured_json_schema_of_a_typed_dict(url: str) -> Any:
    return structured(url, Mood, "json_schema", strict=True)


@case
def structured_json_schema_of_a_dict(url: str) -> Any:
    return structured(url, MOOD, "json_schema")


@case
def structured_json_schema_with_raw(url: str) -> Any:
    answer = structured(url, Weather, "json_schema", include_raw=True)
    return {"parsed": answer["parsed"].model_dump(), "error": answer["parsing_error"], "raw": told(answer["raw"])}


@case
def structured_json_schema_streamed(url: str) -> Any:
    made = brief(url).with_structured_output(MOOD, method="json_schema")
    return list(made.stream(MESSAGES))[-1]


@case
def structured_function_calling(url: str) -> Any:
    return structured(url, Weather, "function_calling")


@case
def structured_function_calling_strict(url: str) -> Any:
    return structured(url, Weather, "function_calling", strict=True)


@case
def structured_function_calling_of_a_dict(url: str) -> Any:
    return structured(url, MOOD, "function_calling")


@case
async def structured_function_calling_async(url: str) -> Any:
    made = brief(url).with_structured_output(Weather, method="function_calling")
    return (await made.ainvoke(MESSAGES)).model_dump()


@case
def structured_json_mode(url: str) -> Any:
    return brief(url).with_structured_output(Nothing, method="json_mode").invoke("in JSON: one").model_dump()


@case
def structured_json_mode_of_no_schema(url: str) -> Any:
    return brief(url).with_structured_output(None, method="json_mode").invoke("in JSON: one")


@case
def tools_any(url: str) -> Any:
    made = brief(url).bind_tools([forecast, now], tool_choice="any")
    return told(made.invoke(MESSAGES))


@case
def tools_named(url: str) -> Any:
    return told(brief(url).bind_tools([forecast, now], tool_choice="forecast").invoke(MESSAGES))


@case
def tools_named_strict(url: str) -> Any:
    made = brief(url).bind_tools([forecast, now], tool_choice="forecast", strict=True)
    return told(made.invoke(MESSAGES))


@case
def tools_not_parallel(url: str) -> Any:
    made = brief(url)
    return told(made.bind_tools([forecast, now], tool_choice="any", parallel_tool_calls=False).invoke(MESSAGES))


@case
def tools_auto(url: str) -> Any:
    return told(chat(url).bind_tools([forecast, now]).invoke(MESSAGES))


@case
def tools_none(url: str) -> Any:
    return told(chat(url).bind_tools([forecast, now], tool_choice="none").invoke(MESSAGES))


@case
def tools_streamed(url: str) -> Any:
    made = brief(url, stream_usage=True).bind_tools([forecast, now], tool_choice="forecast")
    chunks = list(made.stream(MESSAGES))
    return {**told(joined(chunks)), "is_streamed": sum(bool(chunk.tool_call_chunks) for chunk in chunks) > 3}


@case
def tools_round(url: str) -> Any:
    """A call, what the tool says to it, and an answer."""
    bound = chat(url).bind_tools([forecast])
    call = brief(url).bind_tools([forecast], tool_choice="forecast").invoke(ASKED)
    says = forecast.invoke(call.tool_calls[0])
    assert isinstance(says, ToolMessage)
    return {"says": says.content, "answer": told(bound.invoke([HumanMessage(ASKED), call, says]))}


@case
def completion(url: str) -> Any:
    made = OpenAI(base_url=f"{url}/v1", api_key="none", model="red", temperature=0, max_tokens=12, max_retries=0)
    return {"whole": made.invoke(ASKED), "streamed": "".join(made.stream(ASKED)), "many": made.batch([ASKED, "x"])}


@case
def completion_best_of(url: str) -> Any:
    fields: Any = {"model": "red", "temperature": 1.0, "n": 2, "best_of": 3, "seed": 1, "max_retries": 0}
    made = OpenAI(base_url=f"{url}/v1", api_key="none", max_tokens=6, **fields)
    return [one.text for one in made.generate([ASKED]).generations[0]]


@case
def embeddings(url: str) -> Any:
    made = OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key="none", model="red", check_embedding_ctx_length=False, max_retries=0
    )
    many = made.embed_documents([ASKED, "x", ASKED])
    return {
        "lengths": [round(sum(one * one for one in vector), 3) for vector in many],
        "alike": driving.near(many[0], many[2]),
        "query": driving.near(made.embed_query(ASKED), many[0]),
        "differ": many[0] != many[1],
    }


@case
def embeddings_of_fewer_dimensions(url: str) -> Any:
    made = OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key="none", model="tiny", dimensions=5, check_embedding_ctx_length=False
    )
    return len(made.embed_query(ASKED))


@case
def responses(url: str) -> Any:
    return told(chat(url, use_responses_api=True, max_tokens=16).invoke(MESSAGES))


@case
def responses_streamed(url: str) -> Any:
    chunks = list(chat(url, use_responses_api=True, max_tokens=16).stream(MESSAGES))
    return {**told(joined(chunks)), "is_streamed": len(chunks) > 3}


@case
def responses_structured(url: str) -> Any:
    made = brief(url, use_responses_api=True)
    return made.with_structured_output(Weather, method="json_schema").invoke(MESSAGES).model_dump()


@case
def responses_tools(url: str) -> Any:
    made = brief(url, use_responses_api=True).bind_tools([forecast, now], tool_choice="forecast")
    return told(made.invoke(MESSAGES))


@case
def responses_tools_round(url: str) -> Any:
    made = brief(url, use_responses_api=True)
    call = made.bind_tools([forecast], tool_choice="forecast").invoke(ASKED)
    says = forecast.invoke(call.tool_calls[0])
    return told(made.bind_tools([forecast]).invoke([HumanMessage(ASKED), call, says]))


@case
def history(url: str) -> Any:
    """A conversation of which the model has said a part."""
    return told(chat(url).invoke([HumanMessage("one"), AIMessage("two"), HumanMessage("three")]))


@case
def parts(url: str) -> Any:
    """Content as a list of parts."""
    return told(chat(url).invoke([HumanMessage([{"type": "text", "text": ASKED}])]))


@case
def no_such_model(url: str) -> Any:
    return told(chat(url, model="nobody").invoke(ASKED))


@case
def too_long(url: str) -> Any:
    return told(chat(url).invoke("one two " * 300))


@case
def image(url: str) -> Any:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    return told(chat(url).invoke([HumanMessage([{"type": "text", "text": ASKED}, picture])]))


@case
def schema_that_cannot_be_enforced(url: str) -> Any:
    unique = {**MOOD, "properties": {"mood": {"type": "array", "uniqueItems": True}}}
    return structured(url, unique, "json_schema")


@case
def stored(url: str) -> Any:
    return told(chat(url, use_responses_api=True, store=True).invoke(ASKED))


if __name__ == "__main__":
    driving.main()
