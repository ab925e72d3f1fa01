"""Requests are honoured field by field, or refused with the field named."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_inference import metrics
from lorafleet_inference.errors import InvalidValue, UnsupportedParameter
from lorafleet_inference.server.fields import MAX_NAMES, NEUTRAL, PASSED, FieldPolicy
from lorafleet_inference.server.requests import ChatRequest, parse_chat, parse_completion
from lorafleet_inference.server.sampling import bad_word_ids, check_drafts, sampling_of

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi"}


def chat(**fields: Any) -> Any:
    return parse_chat(json.dumps({**CHAT, **fields}).encode())


def completion(**fields: Any) -> Any:
    return parse_completion(json.dumps({**COMPLETION, **fields}).encode())


def known(request: Any) -> dict[str, Any]:
    """What an answer is made by; of other fields only the names are read."""
    return {name: getattr(request, name) for name in type(request).model_fields}


def test_the_defaults_are_openais() -> None:
    request = chat()
    sampling = sampling_of(request, max_tokens=7, choice=0)
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
    if name not in ChatRequest.model_fields:
        assert known(chat(**{name: "anything"})) == known(chat())
    assert known(completion(**{name: {"any": ["thing"]}})) == known(completion())


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_fields_that_would_change_the_output_are_refused_by_name(name: str) -> None:
    request = completion if name in ChatRequest.model_fields else chat
    for value in NEUTRAL[name].values:
        request(**{name: value})
    with pytest.raises(UnsupportedParameter) as caught:
        request(**{name: "something else"})
    assert caught.value.param == name
    assert name in caught.value.message


def test_tools_of_a_completion_pass_only_when_they_are_switched_off() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    completion(tools=tools, tool_choice="none")
    with pytest.raises(UnsupportedParameter, match="tools"):
        completion(tools=tools)


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
    ({"num_speculative_tokens": -1}, "num_speculative_tokens"),
    ({"num_speculative_tokens": 65}, "num_speculative_tokens"),
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
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [1, -1]}, "allowed_token_ids[1]"),
    ({"bad_words": [" "]}, "bad_words[0]"),
    ({"bad_words": "x"}, "bad_words"),
    ({"best_of": 2, "n": 3}, "best_of"),
    ({"best_of": 3, "n": 2, "stream": True}, "best_of"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"priority": 1 << 63}, "priority"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"skip_special_tokens": 1}, "skip_special_tokens"),
    ({"documents": ["text"]}, "documents[0]"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
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
        ({"role": "assistant", "content": "", "function_call": {"name": "f"}}, "messages[0].function_call"),
        ({"role": "function", "content": "x", "name": "f"}, "messages[0].role"),
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
    seeds = [sampling_of(request, max_tokens=1, choice=choice).seed for choice in range(2)]
    assert seeds == [(1 << 63) - 1, 0]


def test_a_seed_of_minus_one_is_none() -> None:
    assert sampling_of(chat(seed=-1), max_tokens=1, choice=0).seed is None
    assert sampling_of(chat(seed=-2), max_tokens=1, choice=0).seed == (1 << 63) - 2


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
    sampling = sampling_of(chat(top_p=0, top_k=-1), max_tokens=1, choice=0)
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
    sampling = sampling_of(chat(**asked, logit_bias={"7": 2, "8": -100}), max_tokens=5, choice=0)
    assert {name: getattr(sampling, name) for name in asked} == asked
    assert sampling.logit_bias == ((7, 2.0), (8, -100.0))
    assert sampling_of(chat(min_tokens=9), max_tokens=5, choice=0).min_tokens == 5


def test_a_request_says_how_many_tokens_are_drafted_as_far_as_the_base_drafts_any() -> None:
    assert sampling_of(chat(), max_tokens=5, choice=0).max_draft_tokens is None
    for number in (0, 8):
        asked = chat(num_speculative_tokens=number)
        assert sampling_of(asked, max_tokens=5, choice=0).max_draft_tokens == number
        check_drafts(asked, max_draft_tokens=8)
    for none in (chat(), chat(num_speculative_tokens=0)):
        check_drafts(none, max_draft_tokens=0)
    with pytest.raises(UnsupportedParameter) as refused:
        check_drafts(chat(num_speculative_tokens=1), max_draft_tokens=0)
    with pytest.raises(InvalidValue) as too_many:
        check_drafts(chat(num_speculative_tokens=9), max_draft_tokens=8)
    assert {refused.value.param, too_many.value.param} == {"num_speculative_tokens"}


def test_no_tokens_are_asked_for_only_where_the_prompt_is_shown() -> None:
    with pytest.raises(InvalidValue) as caught:
        completion(max_tokens=0)
    assert caught.value.param == "max_tokens"
    assert sampling_of(completion(max_tokens=0, echo=True, logprobs=1), max_tokens=0, choice=0).prompt_logprobs == 1
    assert completion(max_tokens=0, prompt_logprobs=2).max_new_tokens == 0


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({}, False),
        ({"return_token_ids": True}, True),
        ({"include_stop_str_in_output": True}, True),
        ({"best_of": 2}, True),
    ],
)
def test_the_engine_tells_the_end_token_where_it_is_needed(asked: dict[str, Any], shown: bool) -> None:
    sampling = sampling_of(completion(**asked), max_tokens=3, choice=0)
    assert sampling.show_end is shown
    assert sampling.num_logprobs == (0 if "best_of" in asked else None)


def test_variables_of_the_template_are_those_of_the_request() -> None:
    assert chat(reasoning_effort="low").variables == {"reasoning_effort": "low"}
    both = chat(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high", "enable_thinking": False})
    assert both.variables == {"reasoning_effort": "high", "enable_thinking": False}
    assert chat().opens_turn
    assert not chat(continue_final_message=True).opens_turn
    assert not chat(add_generation_prompt=False).opens_turn


async def test_a_bad_word_counts_at_the_beginning_and_behind_a_space() -> None:
    vocabulary = {"cat": (1,), " cat": (2,), "dog": (3,), " dog": (9, 3), "eel": (4, 5), " eel": (6, 5)}

    async def encode(text: str) -> tuple[int, ...]:
        return vocabulary[text]

    assert await bad_word_ids(["cat", " dog", "eel"], encode) == ((1,), (2,), (3,), (4, 5), (6, 5))


def unknown_fields() -> dict[str, float]:
    """The counter's values by field."""
    (family,) = metrics.UNKNOWN_FIELDS.metric.collect()
    return {one.labels["field"]: one.value for one in family.samples}


def test_unknown_fields_pass_where_the_pod_is_told_to_ignore_them(caplog: pytest.LogCaptureFixture) -> None:
    policy = FieldPolicy(ignore_unknown=True)
    body = {**CHAT, "chat_id": "7", "stream": True, "stream_options": {"usage": True}}
    before = unknown_fields().get("chat_id", 0)
    for _ in range(3):
        parse_chat(json.dumps(body).encode(), policy)
    assert unknown_fields()["chat_id"] == before + 3
    told = [record.message for record in caplog.records]
    assert len(told) == 2, "one line a name"
    assert "chat_id" in told[0]
    assert "stream_options.usage" in told[1]
    with pytest.raises(UnsupportedParameter, match="adapter_id"):
        parse_chat(json.dumps({**body, "adapter_id": "a"}).encode(), policy)
    for number in range(2 * MAX_NAMES):
        parse_chat(json.dumps({**CHAT, f"made_up_{number}": 1}).encode(), policy)
    assert len(unknown_fields()) <= MAX_NAMES + 1
    assert unknown_fields()["_other"] > 0


def test_unknown_fields_of_messages_pass_too_and_known_ones_do_not() -> None:
    policy = FieldPolicy(ignore_unknown=True)
    said = {"role": "user", "content": "hi", "timestamp": 7}
    assert chat(messages=[said]).messages[0].for_template(0, policy) == {"role": "user", "content": "hi"}
    with pytest.raises(UnsupportedParameter) as caught:
        chat(messages=[said]).messages[0].for_template(0)
    assert caught.value.param == "messages[0].timestamp"
    calls = {"role": "assistant", "content": "", "function_call": {"name": "f"}}
    with pytest.raises(UnsupportedParameter):
        chat(messages=[calls]).messages[0].for_template(0, policy)
