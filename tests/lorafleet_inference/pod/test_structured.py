"""Answers have the form that clients ask for in their words, on the base and on adapters, whole and streamed."""

import json
import re
from typing import Any, Literal

import pytest
from openai import BadRequestError, OpenAI
from pydantic import BaseModel, Field

USER: Any = [{"role": "user", "content": "one two three"}]
MODELS = ("tiny", "red", "blue")


class Person(BaseModel):
    """A model as people write them."""

    name: str = Field(max_length=6)
    age: int = Field(ge=0, le=150)
    mood: Literal["good", "bad"]
    nick: str | None = Field(max_length=3)


@pytest.mark.parametrize("model", MODELS)
def test_the_client_parses_what_it_asked_for(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(model=model, messages=USER, response_format=Person, seed=1, n=2)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, Person)


def test_json_objects_come_whole_and_in_streams(client: OpenAI) -> None:
    asked: Any = {
        "model": "red",
        "messages": USER,
        "seed": 3,
        "max_tokens": 40,
        "temperature": 0,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [12345, "six"]}}},
        "logprobs": True,
    }
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert json.loads(whole) in (12345, "six")
    assert streamed == whole
    assert chunks[-1].usage.completion_tokens > 0


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_regex": "[a-c]{2}-[0-9]{3}"}, "[a-c]{2}-[0-9]{3}"),
        ({"guided_choice": ["yes", "no way"]}, "yes|no way"),
        ({"guided_json": {"type": "boolean"}, "guided_decoding_backend": "xgrammar"}, "true|false"),
        ({"guided_grammar": 'root ::= "x" [0-9] | "y"'}, "x[0-9]|y"),
        ({"structured_outputs": {"regex": "[a-c]{2}"}}, "[a-c]{2}"),
        ({"structured_outputs": {"choice": ["a", "b"]}, "min_tokens": 3}, "a|b"),
        ({"structured_outputs": {"grammar": 'start: "x"+ "y"'}, "logit_bias": {"90": 5}}, "x+y"),
        ({"response_format": {"type": "json_object", "schema": {"const": "c"}}}, '"c"'),
    ],
)
def test_fields_of_vllm_and_lorax(client: OpenAI, fields: dict[str, Any], pattern: str) -> None:
    chat = client.chat.completions.create(model="blue", messages=USER, max_tokens=60, extra_body=fields)
    text = client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=60, extra_body=fields)
    for answer in (chat.choices[0].message.content, *(choice.text for choice in text.choices)):
        assert re.fullmatch(pattern, answer), answer


@pytest.mark.parametrize(
    ("fields", "param", "named"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs", "one of"),
        ({"guided_regex": "(a"}, "guided_regex", "unclosed"),
        ({"guided_json": {"type": "array", "uniqueItems": True}}, "guided_json", "uniqueItems"),
        ({"guided_grammar": "start: nothing"}, "guided_grammar", "nothing"),
        ({"guided_grammar": "root ::= ["}, "guided_grammar", "cannot be read"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "already"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", ""),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_enforced_is_a_400_that_names_the_field(
    client: OpenAI, fields: dict[str, Any], param: str, named: str, stream: bool
) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(model="red", messages=USER, max_tokens=5, stream=stream, extra_body=fields)
    assert refused.value.param == param
    assert named in refused.value.message


def test_responses_have_forms_too(client: OpenAI) -> None:
    response = client.responses.parse(model="red", input="one two", text_format=Person, max_output_tokens=200)
    assert isinstance(response.output_parsed, Person)
    schema: Any = {"type": "json_schema", "name": "n", "schema": {"type": "array", "uniqueItems": True}}
    with pytest.raises(BadRequestError) as refused:
        client.responses.create(model="red", input="one", text={"format": schema})
    assert refused.value.param == "text.format"
