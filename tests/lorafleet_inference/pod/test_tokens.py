"""What vLLM's clients ask beside generation: tokens of a prompt, text of tokens, the version, whether it lives."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from support.pod import ServedPod
from support.tiny_llama import MAX_MODEL_LEN
from tokenizers import Tokenizer

PROMPT = "The quick <|user|> fox, 😀"


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(base_folder / "tokenizer.json"))


def post(pod: ServedPod, path: str, body: Any) -> httpx.Response:
    return httpx.post(f"{pod.url}{path}", json=body, timeout=60, trust_env=False)


def test_a_text_is_told_in_tokens(pod: ServedPod, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(PROMPT).ids
    told = post(pod, "/tokenize", {"model": "red", "prompt": PROMPT, "return_token_strs": True})
    assert told.json() == {
        "count": len(ids),
        "max_model_len": MAX_MODEL_LEN,
        "tokens": ids,
        "token_strs": told.json()["token_strs"],
    }
    names = told.json()["token_strs"]
    assert names[0] == "<s>"
    assert "<|user|>" in names
    assert "".join(names[1:]).startswith("The quick ")
    assert told.headers["x-lorafleet-adapter"] == "red"
    bare = post(pod, "/tokenize", {"prompt": PROMPT, "add_special_tokens": False}).json()
    assert (bare["tokens"], bare["token_strs"]) == (ids[1:], None)


def test_a_chat_is_told_in_tokens_of_its_own_template(pod: ServedPod, client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "one two"}]
    for model in ("blue", "tiny"):
        told = post(pod, "/tokenize", {"model": model, "messages": messages, "temperature": 0}).json()
        asked: Any = {"model": model, "messages": messages, "max_tokens": 1}
        answer: Any = client.chat.completions.create(**asked, extra_body={"return_token_ids": True})
        assert told["tokens"] == answer.prompt_token_ids
    unopened = {"messages": messages, "add_generation_prompt": False}
    assert post(pod, "/tokenize", unopened).json()["count"] < told["count"]


def test_a_text_longer_than_the_context_is_counted(pod: ServedPod, tokenizer: Tokenizer) -> None:
    long = "seven eight " * 4000
    assert post(pod, "/tokenize", {"prompt": long}).json()["count"] == len(tokenizer.encode(long).ids)


def test_tokens_are_told_in_text(pod: ServedPod, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(PROMPT).ids
    assert post(pod, "/detokenize", {"tokens": ids}).json() == {"prompt": f"<s>{PROMPT}"}
    many = ids * 200
    expected = tokenizer.decode(many, skip_special_tokens=False)
    assert post(pod, "/detokenize", {"model": "tiny", "tokens": many}).json() == {"prompt": expected}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "promt": "b"}, 400, "promt"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"prompt": "a", "model": "nobody"}, 404, "model"),
        ("/tokenize", [], 400, None),
        ("/detokenize", {"tokens": [10**6]}, 400, "tokens"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/detokenize", {"tokens": [1], "prompt": "a"}, 400, "prompt"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(
    pod: ServedPod, path: str, body: Any, status: int, param: str | None
) -> None:
    answer = post(pod, path, body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param


def test_a_body_that_is_nested_too_deeply_is_the_clients_fault(pod: ServedPod) -> None:
    body = b'{"prompt": "a", "input": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    answer = httpx.post(f"{pod.url}/tokenize", content=body, timeout=60, trust_env=False)
    assert answer.status_code == 400, answer.text


def test_the_version_and_the_pulse(pod: ServedPod) -> None:
    assert set(pod.get("/version").json()) == {"version"}
    assert (pod.get("/ping").status_code, pod.get("/ping").content) == (200, b"")
    assert httpx.post(f"{pod.url}/ping", trust_env=False).status_code == 200
