"""Every error has its status, its code and OpenAI's shape; others are untouched by it."""

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from support.pod import ServedPod, serve
from support.tiny_llama import MAX_MODEL_LEN, make_adapter

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "one two"}], "max_tokens": 4, "temperature": 0}

USER: Any = {"role": "user", "content": "a <pad> b"}

CASES = [
    ({"model": "green"}, 404, "model_not_found", "model"),
    ({"extra_headers": {"x-lorafleet-revision": "0" * 12}}, 404, "revision_not_found", None),
    ({"temperature": 3}, 400, "invalid_value", "temperature"),
    ({"extra_body": {"use_beam_search": True}}, 400, "unsupported_parameter", "use_beam_search"),
    ({"response_format": {"type": "yaml"}}, 400, "invalid_value", "response_format.type"),
    ({"extra_body": {"typo": 1}}, 400, "unsupported_parameter", "typo"),
    ({"max_tokens": MAX_MODEL_LEN}, 400, "context_length_exceeded", "messages"),
    (
        {"messages": [{"role": "user", "content": "one " * 2 * MAX_MODEL_LEN}]},
        400,
        "context_length_exceeded",
        "messages",
    ),
    ({"extra_body": {"stop_token_ids": [10**6]}}, 400, "invalid_value", "stop_token_ids"),
]


@pytest.fixture(scope="module")
def narrow(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPod]:
    """A pod with little of each: of the KV cache, of bodies, of requests that wait, of ranks and of adapters that fit."""
    root = tmp_path_factory.mktemp("narrow")
    base = Path(shutil.copytree(base_folder, root / "tiny"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    make_adapter(base, root / "good", rank=4, seed=3)
    make_adapter(base, root / "wide", rank=32, seed=3)
    adapters = {"good": root / "good", "wide": root / "wide", "lost": root / "nowhere"}
    limits = ("--kv-cache-memory=16Ki", "--max-body=1Ki", "--max-waiting-requests=2", "--max-rank=16")
    with serve(base, "--served-name=tiny", *limits, adapters=adapters) as pod:
        yield pod


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "status", "code", "param"), CASES, ids=[f"{case[2]}-{case[3]}" for case in CASES])
def test_bad_requests(
    *, client: OpenAI, fields: dict[str, Any], status: int, code: str, param: str, stream: bool
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**{"model": "red", **ASK, **fields}, stream=stream)
    error = caught.value
    assert (error.status_code, error.code) == (status, code)
    assert error.param == param or param is None
    assert error.response.headers["x-lorafleet-pod"] == "pod-1"


def test_a_prompt_that_is_too_long_is_told_the_numbers(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=rf"{MAX_MODEL_LEN} tokens.*prompt has 3"):
        client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=MAX_MODEL_LEN)


@pytest.mark.parametrize("prompt", [[10**6], "", [[]]])
def test_bad_prompts(client: OpenAI, pod: ServedPod, prompt: Any) -> None:
    answer = httpx.post(f"{pod.url}/v1/completions", json={"model": "tiny", "prompt": prompt}, trust_env=False)
    if prompt == "":
        assert answer.status_code == 200  # the tokenizer begins every text with bos
    else:
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_compressed_bodies_are_refused_by_name(pod: ServedPod) -> None:
    answer = httpx.post(
        f"{pod.url}/v1/completions",
        content=gzip.compress(b'{"model": "tiny", "prompt": "a"}'),
        headers={"content-encoding": "gzip"},
        trust_env=False,
    )
    assert answer.status_code == 415
    assert "gzip" in answer.json()["error"]["message"]


def test_a_text_that_spells_a_token_beyond_the_embedding_is_refused(narrow: ServedPod) -> None:
    with narrow.openai() as client:
        for field, ask in (
            ("prompt", lambda: client.completions.create(model="tiny", prompt="a <pad> b")),
            ("messages", lambda: client.chat.completions.create(model="tiny", messages=[USER])),
        ):
            with pytest.raises(openai.BadRequestError, match="not below the vocabulary") as caught:
                ask()
            assert (caught.value.code, caught.value.param) == ("invalid_value", field)
        assert client.completions.create(model="tiny", prompt="a b", max_tokens=1).choices


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/chat/completions", b"{", 400),
        ("POST", "/v1/chat/completions", b"", 400),
        ("GET", "/v1/chat/completions", b"", 405),
        ("POST", "/v1/nothing", b"{}", 404),
        ("GET", "/v1/models/green", b"", 404),
        ("GET", "/v1/routes?after=x", b"", 400),
    ],
)
def test_errors_below_the_api_have_the_shape_too(
    pod: ServedPod, method: str, path: str, body: bytes, status: int
) -> None:
    answer = httpx.request(method, f"{pod.url}{path}", content=body, trust_env=False)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_bodies_that_are_too_large_and_queues_that_are_too_long(narrow: ServedPod) -> None:
    with narrow.openai() as client:
        with pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(model="tiny", prompt="x" * 2000)
        assert caught.value.status_code == 413
        with pytest.raises(openai.BadRequestError) as never:
            client.completions.create(model="tiny", prompt="x", n=3)
        assert (never.value.code, never.value.param) == ("invalid_value", "n")
        assert len(client.completions.create(model="tiny", prompt="x", n=2).choices) == 2


def test_a_context_that_the_kv_cache_cannot_hold_is_cut(narrow: ServedPod) -> None:
    cut = [line for line in narrow.logs.splitlines() if "--kv-cache-memory" in line]
    assert len(cut) == 1
    assert "64 tokens" in cut[0]
    assert f"from {MAX_MODEL_LEN}" in cut[0]
    with narrow.openai() as client:
        shown = {model.id: model.model_dump()["max_model_len"] for model in client.models.list()}
        assert shown["tiny"] == 64
        messages: Any = [{"role": "user", "content": "one two"}]
        answer = client.chat.completions.create(model="tiny", messages=messages, extra_body={"ignore_eos": True})
        assert answer.usage is not None
        assert answer.usage.total_tokens == 64
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=62)
        assert caught.value.code == "context_length_exceeded"


def test_an_adapter_that_was_refused_says_why_and_harms_nobody(narrow: ServedPod) -> None:
    with narrow.openai() as client:
        for name, reason in (("wide", "RankTooHigh"), ("lost", "ArtifactNotFound")):
            with pytest.raises(openai.APIStatusError, match=reason) as caught:
                client.chat.completions.create(model=name, **ASK)
            assert (caught.value.status_code, caught.value.code) == (424, "adapter_failed")
        assert client.chat.completions.create(model="good", **ASK).choices[0].finish_reason
        assert {model.id for model in client.models.list()} >= {"tiny", "good"}


def test_nothing_of_prompts_is_logged(pod: ServedPod, client: OpenAI) -> None:
    secret = "xyzzy plugh"
    client.completions.create(model="red", prompt=secret, max_tokens=1)
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="red", prompt=secret, max_tokens=0)
    assert "xyzzy" not in pod.logs
    assert json.dumps(secret) not in pod.logs
