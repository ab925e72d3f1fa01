"""Requests are honoured field by field, or refused with the field named."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_inference.errors import InvalidValue, UnsupportedParameter
from lorafleet_inference.server.fields import NEUTRAL, PASSED
from lorafleet_inference.server.requests import parse_chat, parse_completion

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi"}


def chat(**fields: Any) -> Any:
    return parse_chat(json.dumps({**CHAT, **fields}).encode())


def completion(**fields: Any) -> Any:
    return parse_completion(json.dumps({**COMPLETION, **fields}).encode())


def test_the_defaults_are_openais() -> None:
    request = chat()
    sampling = request.sampling(max_tokens=7, choice=0)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed, sampling.max_tokens) == (
        1,
        1,
        None,
        None,
        7,
    )
    assert (request.n, request.stream, request.max_new_tokens, request.num_logprobs, request.stops) == (
        1,
        False,
        None,
        None,
        (),
    )
    assert completion().max_new_tokens == 16


@pytest.mark.parametrize(
    "name", sorted({*NEUTRAL, *PASSED, "temperature", "n", "stop", "seed", "stream", "max_tokens"})
)
def test_null_is_absent(name: str) -> None:
    assert chat(**{name: None}) == chat()


@pytest.mark.parametrize("name", sorted(PASSED))
def test_fields_without_effect_pass(name: str) -> None:
    chat(**{name: "anything"})
    completion(**{name: {"any": ["thing"]}})


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_fields_that_would_change_the_output_are_refused_by_name(name: str) -> None:
    for value in NEUTRAL[name].values:
        chat(**{name: value})
    with pytest.raises(UnsupportedParameter) as caught:
        chat(**{name: "something else"})
    assert caught.value.param == name
    assert name in caught.value.message


def test_tools_pass_only_when_they_are_switched_off() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    chat(tools=tools, tool_choice="none")
    with pytest.raises(UnsupportedParameter, match="tools"):
        chat(tools=tools)


def test_unknown_fields_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        chat(temprature=0.5)
    assert caught.value.param == "temprature"
    with pytest.raises(UnsupportedParameter) as caught:
        chat(stream=True, stream_options={"usage": True})
    assert caught.value.param == "stream_options.usage"


BAD_CHAT = [
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "0"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.5}, "min_p"),
    ({"typical_p": 0}, "typical_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 1e-40}, "repetition_penalty"),
    ({"repetition_penalty": 0.0099}, "repetition_penalty"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"one": 1}}, "logit_bias.one"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"seed": 1 << 63}, "seed"),
    ({"seed": 0.5}, "seed"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"logprobs": 3}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": "hi"}, "messages"),
    ({"model": ""}, "model"),
    ({"model": None}, "model"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_CHAT, ids=[json.dumps(fields)[:50] for fields, _ in BAD_CHAT])
def test_bad_values_name_their_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 3, "max_completion_tokens": 4},
        {"top_logprobs": 2},
        {"stream_options": {"include_usage": True}},
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        chat(**fields)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"text"', b"\xff", b'{"model": "m"}'])
def test_bodies_that_are_no_request_are_refused(body: bytes) -> None:
    for parse in (parse_chat, parse_completion):
        with pytest.raises(InvalidValue):
            parse(body)


def test_text_parts_stay_parts_and_developers_are_system() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    request = chat(messages=[{"role": "developer", "content": parts}, {"role": "user", "content": "x", "name": "ann"}])
    assert [message.for_template(0) for message in request.messages] == [
        {"role": "system", "content": parts},
        {"role": "user", "content": "x", "name": "ann"},
    ]


def test_an_answer_of_ours_can_be_sent_back() -> None:
    echoed = {
        "role": "assistant",
        "content": "yes",
        "refusal": None,
        "annotations": [],
        "tool_calls": None,
        "audio": None,
    }
    assert chat(messages=[echoed]).messages[0].for_template(0) == {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "messages[0].content[0].type",
        ),
        ({"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, "messages[0].tool_calls"),
        ({"role": "tool", "content": "x", "tool_call_id": "1"}, "messages[0].role"),
    ],
)
def test_messages_that_are_not_text_are_refused(message: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        chat(messages=[message]).messages[0].for_template(0)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]]), ("", [""])],
)
def test_prompts_come_in_four_forms(prompt: Any, prompts: list[Any]) -> None:
    assert completion(prompt=prompt).prompts == prompts


@pytest.mark.parametrize("prompt", [[], [1, "a"], [[]] * 300, {"a": 1}, [-1], [1.5]])
def test_other_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(InvalidValue) as caught:
        completion(prompt=prompt)
    assert caught.value.param is None or caught.value.param.startswith("prompt")


def test_choices_of_a_seeded_request_draw_differently_and_reproducibly() -> None:
    request = chat(seed=(1 << 63) - 1, n=2)
    seeds = [request.sampling(max_tokens=1, choice=choice).seed for choice in range(2)]
    assert seeds == [(1 << 63) - 1, 0]


def test_a_seed_of_minus_one_is_none() -> None:
    assert chat(seed=-1).sampling(max_tokens=1, choice=0).seed is None
    assert chat(seed=-2).sampling(max_tokens=1, choice=0).seed == (1 << 63) - 2


@pytest.mark.parametrize(
    ("parse", "fields", "said"),
    [
        (chat, {"stop": ["x"] * 17}, "stop: List should have at most 16 items"),
        (chat, {"stop": [""]}, r"stop\[0\]: String should have at least 1 character"),
        (completion, {"prompt": [-1]}, r"prompt\[0\]: Input should be greater than or equal to 0"),
        (completion, {"prompt": [[5, -1]]}, r"prompt\[0\]\[1\]: Input should be greater than or equal to 0"),
    ],
)
def test_a_field_of_several_forms_says_what_is_wrong_with_the_one_that_was_meant(
    parse: Any, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidValue, match=said):
        parse(**fields)


def test_a_byte_order_mark_before_the_body_is_passed_over() -> None:
    body = json.dumps({"model": "m", "prompt": "a"}).encode()
    assert parse_completion(b"\xef\xbb\xbf" + body) == parse_completion(body)


def test_top_p_zero_and_top_k_off_are_understood() -> None:
    sampling = chat(top_p=0, top_k=-1).sampling(max_tokens=1, choice=0)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.0, 1.0, None)


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
names = st.sampled_from(["model", "messages", "prompt", "stop", "n", "tools", "role", "content"])
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)


@given(documents)
def test_no_json_breaks_the_reader(document: Any) -> None:
    body = json.dumps(document).encode()
    for parse in (parse_chat, parse_completion):
        with suppress(InvalidValue, UnsupportedParameter):
            parse(body)


def test_what_is_asked_of_sampling_reaches_the_engine() -> None:
    asked = {
        "min_p": 0.1,
        "typical_p": 0.9,
        "repetition_penalty": 1.2,
        "presence_penalty": -1.0,
        "frequency_penalty": 0.5,
        "min_tokens": 3,
    }
    sampling = chat(**asked, logit_bias={"7": 2, "8": -100}).sampling(max_tokens=5, choice=0)
    assert {name: getattr(sampling, name) for name in asked} == asked
    assert sampling.logit_bias == ((7, 2.0), (8, -100.0))
    assert chat(min_tokens=9).sampling(max_tokens=5, choice=0).min_tokens == 5
