"""LoRAX's routes, asked by LoRAX's own client and by hand."""

import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from support.lorax_client import Call, answers, run
from support.pod import ServedPod
from support.tiny_llama import MAX_MODEL_LEN
from tokenizers import Tokenizer

PROMPT = "one two three"
MODELS = (None, "", "tiny", "red", "blue")
FREE: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos_token": True}


def post(pod: ServedPod, path: str, body: Any) -> httpx.Response:
    return httpx.post(f"{pod.url}{path}", json=body, timeout=60, trust_env=False)


def generate(pod: ServedPod, path: str = "/generate", inputs: str = PROMPT, **parameters: Any) -> httpx.Response:
    return post(pod, path, {"inputs": inputs, "parameters": {**FREE, **parameters}})


def openai_text(client: OpenAI, model: str, **fields: Any) -> str:
    asked: dict[str, Any] = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, **fields}
    return client.completions.create(**asked, extra_body={"ignore_eos": True}).choices[0].text


@pytest.mark.parametrize("is_async", [False, True])
def test_the_client_gets_what_openais_gets(pod: ServedPod, client: OpenAI, is_async: bool) -> None:
    """Greedy unless it asks otherwise; whole and streamed; the base and adapters."""
    whole = [Call(PROMPT, {"adapter_id": name, **FREE}, is_async=is_async) for name in MODELS]
    streams = [Call(PROMPT, {"adapter_id": name, **FREE}, "generate_stream", is_async) for name in MODELS]
    found = answers(pod.url, *whole, *streams)
    for name, answer, events in zip(MODELS, found, found[len(MODELS) :], strict=False):
        assert answer["generated_text"] == openai_text(client, name or "tiny")
        details = answer["details"]
        assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("length", 8, None)
        assert len(details["tokens"]) == 8
        shown = [token for token in details["tokens"] if not token["special"]]
        assert "".join(token["text"] for token in shown) == answer["generated_text"]
        assert [event["token"] for event in events] == details["tokens"]
        assert [event["generated_text"] for event in events] == [None] * 7 + [answer["generated_text"]]
        assert events[-1]["details"] == {
            "finish_reason": "length",
            "prompt_tokens": details["prompt_tokens"],
            "generated_tokens": 8,
            "seed": None,
        }
    assert len({answer["generated_text"] for answer in found[: len(MODELS)]}) == 3


def test_tokens_of_prompt_and_answer_are_told(pod: ServedPod, base_folder: Path) -> None:
    (answer,) = answers(
        pod.url,
        Call(PROMPT, {"adapter_id": "red", "decoder_input_details": True, "return_k_alternatives": 3, **FREE}),
    )
    details = answer["details"]
    ids = Tokenizer.from_file(str(base_folder / "tokenizer.json")).encode(PROMPT).ids
    assert [token["id"] for token in details["prefill"]] == ids
    assert details["prefill"][0]["logprob"] is None
    assert all(token["logprob"] < 0 for token in details["prefill"][1:])
    assert details["prompt_tokens"] == len(ids)
    for token in details["tokens"]:
        alternatives = token["alternative_tokens"]
        assert len(alternatives) == 3
        assert (alternatives[0]["id"], alternatives[0]["logprob"]) == (token["id"], pytest.approx(token["logprob"]))
        logprobs = [one["logprob"] for one in alternatives]
        assert logprobs == sorted(logprobs, reverse=True)
    told = generate(pod, adapter_id="red", details=True).json()["details"]
    assert told["prefill"] == []
    assert told["skipped_tokens"] == 0
    assert all("alternative_tokens" not in token and token["skipped"] is False for token in told["tokens"])
    assert "details" not in generate(pod).json()


def test_a_stop_sequence_is_part_of_the_text(pod: ServedPod, client: OpenAI) -> None:
    """Wherever it begins and ends inside tokens, whole and streamed."""
    free = openai_text(client, "red", max_tokens=20)
    stop = free[3:8]
    asked = {"adapter_id": "red", "max_new_tokens": 20, "ignore_eos_token": True, "stop_sequences": [stop]}
    whole, events = answers(pod.url, Call(PROMPT, asked), Call(PROMPT, asked, "generate_stream"))
    assert whole["generated_text"] == free[: free.index(stop) + len(stop)]
    assert whole["details"]["finish_reason"] == "stop_sequence"
    assert "".join(token["text"] for token in whole["details"]["tokens"]) == whole["generated_text"]
    assert events[-1]["generated_text"] == whole["generated_text"]
    assert "".join(event["token"]["text"] for event in events) == whole["generated_text"]
    assert events[-1]["details"]["finish_reason"] == "stop_sequence"


def test_the_end_token_is_told_and_not_part_of_the_text(pod: ServedPod) -> None:
    """A form that is complete leaves nothing but the end, which LoRAX tells as a token."""
    form = {"type": "json_object", "schema": {"enum": [7]}}
    (answer, events) = answers(
        pod.url,
        Call(PROMPT, {"adapter_id": "red", "response_format": form, "max_new_tokens": 20}),
        Call(PROMPT, {"adapter_id": "red", "response_format": form, "max_new_tokens": 20}, "generate_stream"),
    )
    assert answer["generated_text"] == "7"
    details = answer["details"]
    assert details["finish_reason"] == "eos_token"
    assert details["generated_tokens"] == len(details["tokens"])
    assert [event["token"] for event in events] == details["tokens"]
    assert events[-1]["generated_text"] == "7"
    whole = post(pod, "/generate", {"inputs": PROMPT, "parameters": {"response_format": form}})
    assert whole.headers["x-generated-tokens"] == str(details["generated_tokens"])


def test_sampled_answers_tell_the_seed_that_makes_them_again(pod: ServedPod) -> None:
    drawn, again, other = answers(
        pod.url,
        Call(PROMPT, {"do_sample": True, **FREE}),
        Call(PROMPT, {"temperature": 5.0, "seed": 2**64 - 1, **FREE}),
        Call(PROMPT, {"temperature": 5.0, "seed": 3, "top_k": 50, "top_p": 0.9, "typical_p": 0.9, **FREE}),
    )
    assert again["details"]["seed"] == 2**64 - 1
    assert other["details"]["seed"] == 3
    (repeated,) = answers(pod.url, Call(PROMPT, {"do_sample": True, "seed": drawn["details"]["seed"], **FREE}))
    assert repeated["generated_text"] == drawn["generated_text"]
    greedy = generate(pod, temperature=0, do_sample=True, details=True).json()
    assert greedy["generated_text"] == generate(pod).json()["generated_text"]
    assert greedy["details"]["seed"] is None


def test_the_best_of_several_comes_first(pod: ServedPod) -> None:
    (answer,) = answers(pod.url, Call(PROMPT, {"do_sample": True, "temperature": 2.0, "best_of": 4, **FREE}))
    sequences = [{**answer["details"], "generated_text": answer["generated_text"]}]
    sequences += answer["details"]["best_of_sequences"]
    assert len(sequences) == 4
    means = [sum(token["logprob"] for token in one["tokens"]) / len(one["tokens"]) for one in sequences]
    assert means == sorted(means, reverse=True)
    seeds = [one["seed"] for one in sequences]
    assert len(set(seeds)) == 4
    for one in sequences:
        made = generate(pod, temperature=2.0, seed=one["seed"]).json()
        assert made["generated_text"] == one["generated_text"]
    alone = generate(pod, temperature=2.0, best_of=2).json()
    assert set(alone) == {"generated_text"}


def test_prompts_are_cut_and_repeated_where_that_is_asked(pod: ServedPod, base_folder: Path) -> None:
    ids = Tokenizer.from_file(str(base_folder / "tokenizer.json")).encode(PROMPT, add_special_tokens=False).ids
    cut = generate(pod, truncate=4, decoder_input_details=True).json()["details"]
    assert [token["id"] for token in cut["prefill"]][1:] == ids[-3:]
    plain = generate(pod).json()["generated_text"]
    assert generate(pod, return_full_text=True).json()["generated_text"] == PROMPT + plain
    (events,) = answers(pod.url, Call(PROMPT, {"return_full_text": True, **FREE}, "generate_stream"))
    assert events[-1]["generated_text"] == PROMPT + plain
    long = generate(pod, max_new_tokens=None, details=True).json()["details"]
    assert long["prompt_tokens"] + long["generated_tokens"] == MAX_MODEL_LEN


def test_penalties_are_those_of_the_openai_route(pod: ServedPod, client: OpenAI) -> None:
    penalties = {"frequency_penalty": 1.5, "presence_penalty": -1.0}
    expected = client.completions.create(
        model="blue",
        prompt=PROMPT,
        max_tokens=8,
        temperature=0,
        **penalties,
        extra_body={"ignore_eos": True, "repetition_penalty": 1.7},
    )
    found = generate(pod, adapter_id="blue", repetition_penalty=1.7, **penalties).json()
    assert found["generated_text"] == expected.choices[0].text


def test_each_route_answers_in_its_way(pod: ServedPod) -> None:
    body = {"inputs": PROMPT, "parameters": {**FREE, "adapter_id": "red"}}
    whole = post(pod, "/generate", {**body, "stream": True})
    listed = post(pod, "/", body)
    assert listed.json() == [whole.json()]
    for path, given in (("/generate_stream", body), ("/", {**body, "stream": True})):
        stream = post(pod, path, given)
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data:")) for line in stream.text.splitlines() if line]
        assert events[-1]["generated_text"] == whole.json()["generated_text"]
        assert events[-1]["details"] is None
        assert "[DONE]" not in stream.text
        assert stream.headers["x-adapter-id"] == "red"
    assert post(pod, "/generate", {"inputs": PROMPT, "parameters": None}).status_code == 200


def test_headers_tell_counts_and_times(pod: ServedPod) -> None:
    answer = generate(pod, adapter_id="red")
    headers = answer.headers
    counts = {name: int(headers[f"x-{name}-tokens"]) for name in ("prompt", "generated", "skipped", "total")}
    assert (counts["generated"], counts["skipped"]) == (8, 0)
    assert counts["total"] == counts["prompt"] + 8
    assert headers["x-compute-characters"] == str(len(PROMPT))
    assert (headers["x-model-id"], headers["x-adapter-id"], headers["x-compute-type"]) == ("tiny", "red", "cpu")
    times = ("total", "validation", "queue", "inference", "per-token", "to-first-token", "per-output-token")
    named = [f"x-time-{name}" if name.startswith(("per", "to-")) else f"x-{name}-time" for name in times]
    assert all(int(headers[name]) >= 0 for name in named)
    assert int(headers["x-compute-time"]) >= int(headers["x-inference-time"])
    assert "x-adapter-id" not in generate(pod).headers


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"adapter_id": "red", "adapter_source": "hub"}, "parameters.adapter_source"),
        (
            {"merged_adapters": {"ids": ["red"], "weights": [1]}, "adapter_source": "s3"},
            "parameters.adapter_source",
        ),
        ({"adapter_source": "pbase"}, "parameters.adapter_source"),
        ({"api_token": "secret"}, "parameters.api_token"),
        ({"watermark": True}, "parameters.watermark"),
        ({"apply_chat_template": True}, "parameters.apply_chat_template"),
        ({"temperatur": 1}, "parameters.temperatur"),
        ({"temperature": -1}, "parameters.temperature"),
        ({"top_p": 0}, "parameters.top_p"),
        ({"typical_p": 1.0}, "parameters.typical_p"),
        ({"top_k": 0}, "parameters.top_k"),
        ({"max_new_tokens": 0}, "parameters.max_new_tokens"),
        ({"max_new_tokens": 10**6}, "inputs"),
        ({"repetition_penalty": 0}, "parameters.repetition_penalty"),
        ({"frequency_penalty": 3}, "parameters.frequency_penalty"),
        ({"stop": "word"}, "parameters.stop"),
        ({"stop": ["a"] * 17}, "parameters.stop"),
        ({"truncate": 0}, "parameters.truncate"),
        ({"best_of": 2}, "parameters.best_of"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "parameters.best_of"),
        ({"return_k_alternatives": 0}, "parameters.return_k_alternatives"),
        ({"response_format": {"type": "json_object", "schema": {"enum": []}}}, "parameters.response_format"),
    ],
)
def test_what_is_not_legal_is_refused_with_its_name(pod: ServedPod, parameters: dict[str, Any], param: str) -> None:
    answer = generate(pod, **parameters)
    told = answer.json()
    assert (answer.status_code, told["error_type"], told["param"]) == (422, "validation", param)
    assert param.removeprefix("parameters.") in told["error"]
    assert "secret" not in answer.text


def test_values_that_change_nothing_pass(pod: ServedPod) -> None:
    plain = generate(pod).json()
    assert generate(pod, watermark=False, apply_chat_template=False, adapter_source=None).json() == plain
    assert generate(pod, adapter_source="hub").json() == plain
    red = generate(pod, adapter_id="red").json()
    assert generate(pod, adapter_id="red", adapter_source="local").json() == red != plain


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"parameters": {}}, "inputs"),
        ({"inputs": ""}, "inputs"),
        ({"inputs": ["a"]}, "inputs"),
        ({"inputs": "a", "model": "red"}, "model"),
        (
            {"inputs": "a", "parameters": {"decoder_input_details": True}, "stream": True},
            "parameters.decoder_input_details",
        ),
        ({"inputs": "a", "parameters": {"best_of": 2, "do_sample": True}, "stream": True}, "parameters.best_of"),
    ],
)
def test_bodies_are_read_as_strictly(pod: ServedPod, body: Any, param: str) -> None:
    answer = post(pod, "/", body)
    assert (answer.status_code, answer.json()["error_type"], answer.json()["param"]) == (422, "validation", param)
    assert httpx.post(f"{pod.url}/", content=b"{", trust_env=False).status_code == 422


def test_the_client_raises_the_errors_that_it_knows(pod: ServedPod) -> None:
    """An adapter that is not served is none of the request's form; nothing of it harms the next one."""
    given: list[tuple[dict[str, Any], str]] = [
        ({"adapter_id": "nobody"}, "GenerationError"),
        ({"adapter_id": "red@000000000000"}, "GenerationError"),
        ({"adapter_id": "red", "adapter_source": "hub"}, "ValidationError"),
        ({"adapter_id": "line\nbreak"}, "GenerationError"),
        ({"max_new_tokens": 10**6}, "ValidationError"),
        ({"watermark": True}, "ValidationError"),
    ]
    calls = [Call(PROMPT, fields) for fields, _ in given]
    calls += [Call(PROMPT, fields, "generate_stream", is_async=True) for fields, _ in given]
    outcomes = run(pod.url, *calls, Call(PROMPT, FREE))
    assert "answer" in outcomes.pop()
    for outcome, (fields, name) in zip(outcomes, given * 2, strict=True):
        assert outcome.get("error") == f"lorax.errors.{name}", (fields, outcome)
        assert outcome["message"]


def test_log_probabilities_are_the_models_own(pod: ServedPod, client: OpenAI) -> None:
    """Also of tokens that are drawn at another temperature."""
    told = generate(pod, adapter_id="red", details=True).json()["details"]["tokens"]
    asked: dict[str, Any] = {"model": "red", "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 0}
    logprobs = client.completions.create(**asked, extra_body={"ignore_eos": True}).choices[0].logprobs
    assert logprobs is not None
    assert [token["logprob"] for token in told] == pytest.approx(logprobs.token_logprobs)
    assert all(math.isfinite(token["logprob"]) for token in told)


def test_text_is_told_in_tokens_and_their_places(pod: ServedPod, base_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(base_folder / "tokenizer.json"))
    text = "The quick <|user|> fox, é 😀"
    for special in (True, False):
        encoding = tokenizer.encode(text, add_special_tokens=special)
        told = post(pod, "/tokenize", {"inputs": text, "add_special_tokens": special}).json()
        assert [(one["id"], one["text"]) for one in told] == list(zip(encoding.ids, encoding.tokens, strict=True))
        assert [(one["start"], one["stop"]) for one in told] == encoding.offsets
    assert len(post(pod, "/tokenize", {"inputs": text}).json()) == len(tokenizer.encode(text).ids)
    long = "seven eight " * 4000
    assert len(post(pod, "/tokenize", {"inputs": long}).json()) == len(tokenizer.encode(long).ids)
    wrong = post(pod, "/tokenize", {"inputs": 5})
    assert (wrong.status_code, wrong.json()["error_type"]) == (422, "validation")
    unknown = post(pod, "/tokenize", {"inputs": "a", "adapter": 5})
    assert (unknown.status_code, unknown.json()["param"]) == (422, "adapter")
    assert post(pod, "/tokenize", {"prompt": 5}).status_code == 400


def test_the_server_says_what_it_is(pod: ServedPod) -> None:
    info = pod.get("/info").json()
    assert info["model_id"] == pod.get("/v1/models/tiny").json()["root"]
    assert (info["max_total_tokens"], info["max_input_length"]) == (MAX_MODEL_LEN, MAX_MODEL_LEN - 1)
    assert (info["model_dtype"], info["model_device_type"], info["model_sha"]) == ("float32", "cpu", None)
    assert info["max_batch_total_tokens"] >= MAX_MODEL_LEN
    assert pod.get("/").status_code == pod.get("/health").status_code == 200
