"""Adapters whose weights or numbers are not finite, and requests that would make them so, end alone; the pod lives on."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from safetensors.numpy import load_file, save_file
from support.admin import Refused
from support.declared_pod import DeclaredPod
from support.wild import wild_adapter

ASK: dict[str, Any] = {"prompt": "Hello there", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def client(declared: DeclaredPod) -> Iterator[openai.OpenAI]:
    declared.adapter(declared.volume, "tame")
    declared.admin.put("tame", "volume", "tame")
    wild_adapter(declared.volume / "tame", declared.volume / "wild")
    declared.admin.put("wild", "volume", "wild")
    with declared.pod.openai() as made:
        yield made


def test_an_adapter_with_one_nan_is_refused_with_the_tensor(declared: DeclaredPod) -> None:
    folder = declared.adapter(declared.volume, "nan")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "lora_B" in key)
    tensors[key][0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(Refused, match=rf"{key} is not finite: nan at \[0, 0\]") as caught:
        declared.admin.put("nan", "volume", "nan")
    assert caught.value.reason == "ArtifactInvalid"


@pytest.mark.parametrize("fields", [{}, {"temperature": 1}, {"logprobs": 3}, {"extra_body": {"prompt_logprobs": 2}}])
def test_a_request_whose_logits_are_not_finite(
    declared: DeclaredPod, client: openai.OpenAI, fields: dict[str, Any]
) -> None:
    series = 'lorafleet_not_finite_total{adapter="{adapter}",base="tiny"}'
    before = declared.pod.metric_of_adapter(series, "wild")
    with pytest.raises(openai.APIStatusError, match="logits of the adapter wild are not finite") as caught:
        client.completions.create(model="wild", **{**ASK, **fields})
    assert (caught.value.status_code, caught.value.code) == (424, "not_finite")
    assert declared.pod.metric_of_adapter(series, "wild") == before + 1
    assert client.completions.create(model="tame", **ASK).choices[0].finish_reason
    assert declared.pod.get("/health").status_code == 200


def test_a_stream_whose_logits_are_not_finite(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="logits of the adapter wild are not finite"):
        list(client.completions.create(model="wild", stream=True, **ASK))


@pytest.mark.parametrize("penalty", [1e-40, 1e-300, 5e-324])
def test_a_penalty_that_nothing_can_be_divided_by(client: openai.OpenAI, penalty: float) -> None:
    with pytest.raises(openai.BadRequestError, match="repetition_penalty"):
        client.completions.create(model="tiny", **{**ASK, "temperature": 1}, extra_body={"repetition_penalty": penalty})
    smallest = {"repetition_penalty": 0.01, "frequency_penalty": -2, "logit_bias": {"3": 100}}
    answer = client.completions.create(model="tiny", **{**ASK, "temperature": 1}, extra_body=smallest)
    assert answer.usage is not None
