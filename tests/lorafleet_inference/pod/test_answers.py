"""The real client against a real pod: base and adapters, JSON and streams."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from support.pod import ServedPod
from transformers import AutoTokenizer

from lorafleet_contract.names import revision_of
from lorafleet_inference.adapters.digest import digest_of

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "one two"}], "max_tokens": 12, "temperature": 0}
MODELS = ["tiny", "red", "blue"]


def text_of(client: OpenAI, model: str, **fields: Any) -> str:
    return client.chat.completions.create(model=model, **{**ASK, **fields}).choices[0].message.content or ""


def streamed(client: OpenAI, **fields: Any) -> tuple[str, list[Any]]:
    chunks = list(client.completions.create(stream=True, **fields))
    return "".join(chunk.choices[0].text for chunk in chunks if chunk.choices), chunks


def test_base_and_adapters_answer_differently(client: OpenAI) -> None:
    assert len({text_of(client, model) for model in MODELS}) == 3


async def test_answers_do_not_depend_on_what_else_is_asked(pod: ServedPod, client: OpenAI) -> None:
    alone = {model: text_of(client, model) for model in MODELS}
    async with pod.async_openai() as many:
        mixed = await asyncio.gather(*(many.chat.completions.create(model=model, **ASK) for model in MODELS * 8))
    assert [answer.choices[0].message.content for answer in mixed] == [alone[model] for model in MODELS * 8]


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_joined_is_the_answer(client: OpenAI, model: str) -> None:
    fields = {"model": model, "prompt": "seven eight", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    extra = {"ignore_eos": fields.pop("ignore_eos")}
    whole = client.completions.create(**fields, extra_body=extra).choices[0]
    text, chunks = streamed(client, **fields, extra_body=extra)
    assert (text, chunks[-1].choices[0].finish_reason) == (whole.text, whole.finish_reason) == (whole.text, "length")
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.model == model for chunk in chunks)


def test_a_chat_stream_opens_with_the_role_and_ends_with_a_reason(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(model="red", stream=True, stream_options={"include_usage": True}, **ASK)
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text_of(client, "red")
    usage = chunks[-1].usage
    assert usage is not None
    assert not chunks[-1].choices
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_answers_have_openais_shape(client: OpenAI) -> None:
    first = client.chat.completions.create(model="red", **ASK)
    second = client.chat.completions.create(model="red", **ASK)
    assert first.id != second.id
    assert (first.object, first.model, first.choices[0].message.role) == ("chat.completion", "red", "assistant")
    assert first.usage is not None
    assert 0 < first.usage.completion_tokens <= 12


def test_headers_name_what_answered(client: OpenAI, adapter_folders: dict[str, Path]) -> None:
    raw = client.chat.completions.with_raw_response.create(model="red", **ASK, extra_headers={"x-request-id": "mine"})
    revision = revision_of(digest_of(adapter_folders["red"]))
    assert raw.headers["x-lorafleet-adapter"] == "red"
    assert raw.headers["x-lorafleet-revision"] == revision
    assert raw.headers["x-lorafleet-pod"] == "pod-1"
    assert raw.headers["x-request-id"] == "mine"
    stream = client.chat.completions.with_raw_response.create(
        model="red", stream=True, **ASK, extra_headers={"x-lorafleet-revision": revision}
    )
    assert stream.headers["x-lorafleet-revision"] == revision
    stream.http_response.read()
    base = client.chat.completions.with_raw_response.create(model="tiny", **ASK)
    assert "x-lorafleet-revision" not in base.headers
    assert base.headers["x-request-id"]


def test_stop_strings_end_answers_and_are_not_shown(client: OpenAI) -> None:
    ask = {"model": "red", "prompt": "ten", "max_tokens": 40, "temperature": 0, "extra_body": {"ignore_eos": True}}
    text = client.completions.create(**ask).choices[0].text
    assert len(text) > 8
    stop = text[3:7]
    cut = text[: text.index(stop)]
    for stops in (stop, [stop, "never to be seen"]):
        answer = client.completions.create(stop=stops, **ask)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (cut, "stop")
        joined, chunks = streamed(client, stop=stops, **ask)
        assert (joined, chunks[-1].choices[0].finish_reason) == (cut, "stop")


def test_stop_token_ids_end_answers(client: OpenAI, base_folder: Path) -> None:
    ask = {"model": "tiny", "prompt": "ten", "max_tokens": 20, "temperature": 0, "logprobs": 0}
    choice = client.completions.create(**ask, extra_body={"ignore_eos": True}).choices[0]
    assert choice.logprobs is not None
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    token = next(
        name for name in choice.logprobs.tokens or [] if tokenizer.encode(name, add_special_tokens=False)[1:] == []
    )
    token_id = tokenizer.encode(token, add_special_tokens=False)[0]
    stopped = client.completions.create(**ask, extra_body={"ignore_eos": True, "stop_token_ids": [token_id]}).choices[0]
    assert stopped.finish_reason == "stop"
    assert choice.text.startswith(stopped.text)
    assert stopped.text != choice.text


def test_several_choices_differ_and_a_seed_repeats_them(client: OpenAI) -> None:
    ask = {**ASK, "temperature": 1.5, "n": 4, "seed": 7}
    first, second = (client.chat.completions.create(model="blue", **ask) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert len(set(texts)) > 1
    assert texts == [choice.message.content for choice in second.choices]
    streamed_texts = [""] * 4
    for chunk in client.chat.completions.create(model="blue", stream=True, **ask):
        streamed_texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed_texts == texts


def test_log_probabilities_are_of_the_tokens_shown(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="red", **ASK, logprobs=True, top_logprobs=3).choices[0]
    assert answer.logprobs is not None
    content = answer.logprobs.content or []
    data = b"".join(bytes(token.bytes or []) for token in content)
    assert data.decode(errors="replace") == answer.message.content
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)
        assert token.logprob <= 0
    chunks = client.chat.completions.create(model="red", stream=True, **ASK, logprobs=True, top_logprobs=3)
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [token.token for part in parts for token in part.content or []] == [token.token for token in content]


def test_completions_take_prompts_in_every_form(client: OpenAI, base_folder: Path) -> None:
    ids = AutoTokenizer.from_pretrained(base_folder).encode("one two")
    ask = {"model": "red", "max_tokens": 6, "temperature": 0}
    expected = client.completions.create(prompt="one two", **ask).choices[0].text
    for prompt, num in (("one two", 1), (["one two"] * 2, 2), (ids, 1), ([ids, ids], 2)):
        answer = client.completions.create(prompt=prompt, **ask)
        assert [choice.text for choice in answer.choices] == [expected] * num
        assert [choice.index for choice in answer.choices] == list(range(num))
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == num * len(ids)


def test_completion_log_probabilities_have_offsets(client: OpenAI) -> None:
    choice = client.completions.create(model="tiny", prompt="ten", max_tokens=5, temperature=0, logprobs=2).choices[0]
    assert choice.logprobs is not None
    offsets = choice.logprobs.text_offset or []
    assert offsets[0] == 0
    assert len(offsets) == len(choice.logprobs.tokens or []) == len(choice.logprobs.token_logprobs or [])
    assert all(len(top) == 2 for top in choice.logprobs.top_logprobs or [])


def test_an_adapters_own_chat_template_is_used(client: OpenAI, base_folder: Path) -> None:
    answer = client.chat.completions.create(model="blue", **ASK)
    tokens = AutoTokenizer.from_pretrained(base_folder).encode("<s>one two", add_special_tokens=False)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(tokens)


def test_repeated_prompts_are_found_in_the_cache(client: OpenAI) -> None:
    ask = {"model": "red", "prompt": "the quick brown fox " * 8, "max_tokens": 1, "temperature": 0}
    client.completions.create(**ask)
    usage = client.completions.create(**ask).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert 0 < (usage.prompt_tokens_details.cached_tokens or 0) < usage.prompt_tokens


def test_models_lists_base_and_adapters(client: OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert set(models) == set(MODELS)
    assert models["red"].to_dict()["parent"] == "tiny"
    assert client.models.retrieve("blue").id == "blue"


def test_metrics_count_what_was_answered(pod: ServedPod, client: OpenAI) -> None:
    series = 'lorafleet_generation_tokens_total{adapter="red",base="tiny"}'
    before = pod.metric(series)
    answer = client.chat.completions.create(model="red", **ASK)
    assert answer.usage is not None
    assert pod.metric(series) == before + answer.usage.completion_tokens
    assert pod.metric('lorafleet_time_to_first_token_seconds_count{base="tiny"}') > 0
    text = pod.get("/metrics").text
    assert 'running_lora_adapters="blue,red"' in text
    for name in ("blue", "red"):
        assert f'vllm:lora_adapter_loaded{{adapter_name="{name}",level="gpu",model_name="tiny"' in text


def test_routes_and_probes(pod: ServedPod) -> None:
    assert pod.get("/health").status_code == pod.get("/ready").status_code == 200
    routes = json.loads(pod.get("/v1/routes").text)
    assert {adapter["name"] for adapter in routes["adapters"]} == {"red", "blue"}


def test_prompt_logprobs_have_vllms_form(client: OpenAI) -> None:
    answer = client.completions.create(
        model="red", prompt=[5, 6, 7], max_tokens=1, temperature=0, n=2, extra_body={"prompt_logprobs": 1}
    )
    for choice in answer.choices:
        first, *rest = choice.to_dict()["prompt_logprobs"]  # type: ignore[misc]
        assert first is None
        for token_id, place in zip(("6", "7"), rest, strict=True):
            assert 1 <= len(place) <= 2
            assert place[token_id]["logprob"] <= max(one["logprob"] for one in place.values()) <= 0
            assert isinstance(place[token_id]["decoded_token"], str)
    plain = client.completions.create(model="red", prompt=[5, 6, 7], max_tokens=1)
    assert "prompt_logprobs" not in plain.choices[0].to_dict()
