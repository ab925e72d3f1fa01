"""Embeddings of a real pod, asked by the clients of OpenAI and LoRAX and by hand."""

import base64
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from support.lorax_client import Call, answers
from support.models import Reference
from support.pod import ServedPod
from support.tiny_llama import MAX_MODEL_LEN
from tokenizers import Tokenizer

TEXTS = ["one two three", "The quick <|user|> fox, 😀", "seven"]


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(base_folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def reference(base_folder: Path, adapter_folders: dict[str, Path]) -> Reference:
    return Reference(base_folder, adapter_folders)


def expected(reference: Reference, adapter: str | None, ids: Sequence[int], size: int | None = None) -> torch.Tensor:
    """Of the last token, normalised: a base of no files says nothing else."""
    return torch.nn.functional.normalize(reference.hidden_states(adapter, ids)[-1][:size], dim=0)


def post(pod: ServedPod, body: Any, path: str = "/v1/embeddings") -> httpx.Response:
    return httpx.post(f"{pod.url}{path}", json=body, timeout=60, trust_env=False)


@pytest.mark.parametrize("model", ["tiny", "red", "blue"])
def test_the_client_of_openai(
    pod: ServedPod, client: OpenAI, tokenizer: Tokenizer, reference: Reference, model: str
) -> None:
    adapter = None if model == "tiny" else model
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    wanted = [expected(reference, adapter, one) for one in ids]
    for given in (TEXTS, ids):
        for form in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
            answer: Any = client.embeddings.create(model=model, input=given, **form)  # type: ignore[arg-type]
            assert (answer.model, [one.index for one in answer.data]) == (model, [0, 1, 2])
            assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, ids))
            for one, vector in zip(answer.data, wanted, strict=True):
                ours = (
                    array("f", base64.b64decode(one.embedding))
                    if form.get("encoding_format") == "base64"
                    else one.embedding
                )
                assert torch.allclose(torch.tensor(ours), vector, atol=1e-4)
    only = client.embeddings.create(model=model, input=TEXTS[0], dimensions=5, user="somebody")
    assert torch.allclose(torch.tensor(only.data[0].embedding), expected(reference, adapter, ids[0], 5), atol=1e-4)
    raw = client.embeddings.with_raw_response.create(model=model, input=ids[0])
    assert raw.headers.get("x-lorafleet-adapter") == adapter
    assert pod.metric(f'lorafleet_requests_total{{adapter="{adapter or ""}",base="tiny",finish="stop"}}') > 0


def test_the_client_of_lorax(pod: ServedPod, tokenizer: Tokenizer, reference: Reference) -> None:
    ids = tokenizer.encode(TEXTS[0]).ids
    (plain,) = answers(pod.url, Call(TEXTS[0], {}, "embed"))
    assert torch.allclose(torch.tensor(plain["embeddings"]), expected(reference, None, ids), atol=1e-4)
    told = post(pod, {"inputs": TEXTS[0], "parameters": {"adapter_id": "red"}, "stream": False}, "/embed")
    assert torch.allclose(torch.tensor(told.json()["embeddings"]), expected(reference, "red", ids), atol=1e-4)
    merged = {"ids": ["red", "blue"], "weights": [1.0, 0.0]}
    alone = post(pod, {"inputs": TEXTS[0], "parameters": {"merged_adapters": merged}}, "/embed")
    assert torch.allclose(torch.tensor(alone.json()["embeddings"]), expected(reference, "red", ids), atol=1e-4)


def test_inputs_are_cut_where_that_is_asked(pod: ServedPod, tokenizer: Tokenizer, reference: Reference) -> None:
    long = tokenizer.encode("one two " * MAX_MODEL_LEN).ids
    for given in ("one two " * MAX_MODEL_LEN, long):
        refused = post(pod, {"model": "tiny", "input": given})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert refused.json()["error"]["param"] == "input"
        for number, kept in ((7, 7), (-1, MAX_MODEL_LEN)):
            told = post(pod, {"model": "tiny", "input": given, "truncate_prompt_tokens": number}).json()
            assert told["usage"] == {"prompt_tokens": kept, "total_tokens": kept}
            ours = torch.tensor(told["data"][0]["embedding"])
            ids = (
                [long[0], *long[1 - kept :]] if isinstance(given, str) else long[-kept:]
            )  # a text keeps its first token
            assert torch.allclose(ours, expected(reference, None, ids), atol=1e-3)
    bare = post(pod, {"model": "tiny", "input": TEXTS[0], "add_special_tokens": False}).json()
    assert bare["usage"]["prompt_tokens"] == len(tokenizer.encode(TEXTS[0]).ids) - 1


def test_as_many_inputs_as_openai_takes(declared: Any, client: OpenAI) -> None:
    """A pod lets 1,024 sequences wait: more in one request are refused by the name of the field."""
    many = client.embeddings.create(model="tiny", input=[[5, number % 200 + 4] for number in range(600)])
    assert len({tuple(one.embedding) for one in many.data}) == 200
    assert [one.index for one in many.data] == list(range(600))
    assert many.data[0].embedding == pytest.approx(many.data[200].embedding, abs=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "tiny"}, 400, "input"),
        ({"model": "tiny", "input": []}, 400, "input"),
        ({"model": "tiny", "input": ["a"] * 2049}, 400, "input"),
        ({"model": "tiny", "input": ["a"] * 1025}, 400, "input"),
        ({"model": "tiny", "input": ["a", 5]}, 400, "input[1]"),
        ({"model": "tiny", "input": [[]]}, 400, "input"),
        ({"model": "tiny", "input": "", "add_special_tokens": False}, 400, "input"),
        ({"model": "tiny", "input": [10**6]}, 400, "input"),
        ({"model": "tiny", "input": [-1]}, 400, "input[0]"),
        ({"model": "tiny", "input": "a", "dimensions": 0}, 400, "dimensions"),
        ({"model": "tiny", "input": "a", "dimensions": 10_000}, 400, "dimensions"),
        ({"model": "tiny", "input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"model": "tiny", "input": "a", "truncate_prompt_tokens": 0}, 400, "truncate_prompt_tokens"),
        ({"model": "tiny", "input": "a", "input_type": "query"}, 400, "input_type"),
        ({"model": "nobody", "input": "a"}, 404, "model"),
        ({"input": "a"}, 400, "model"),
    ],
)
def test_what_is_not_legal_is_refused_with_its_name(pod: ServedPod, body: Any, status: int, param: str) -> None:
    refused = post(pod, body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, param), refused.text


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"inputs": ""}, 422, "inputs"),
        ({"inputs": "a", "parameters": {"adapter_id": "nobody"}}, 424, "model"),
        ({"inputs": "a", "parameters": {"api_token": "x"}}, 422, "parameters.api_token"),
        ({"inputs": "a", "parameters": {"adapter_name": "x"}}, 422, "parameters.adapter_name"),
        (
            {"inputs": "a", "parameters": {"merged_adapters": {"ids": [], "weights": []}}},
            422,
            "parameters.merged_adapters.ids",
        ),
        ({"inputs": "a", "normalize": True}, 422, "normalize"),
    ],
)
def test_lorax_has_its_own_words_for_that(pod: ServedPod, body: Any, status: int, param: str) -> None:
    refused = post(pod, body, "/embed")
    assert (refused.status_code, refused.json()["param"]) == (status, param), refused.text
    assert refused.json()["error_type"] in ("validation", "generation")
    nulls = {"inputs": "one", "parameters": None, "stream": None}
    assert post(pod, nulls, "/embed").status_code == 200
