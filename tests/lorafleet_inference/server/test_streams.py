"""Answers over HTTP are the same however the engine's tokens come; what comes together is sent together."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.canned_pod import canned_pod, model_without_weights
from support.turns import best_longest_turn
from tokenizers import Tokenizer

PROMPT = "one two three stop four "
USAGE = {"stream_options": {"include_usage": True}}
REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {"prompt": PROMPT, "max_tokens": 24},
    "stop string": {"prompt": PROMPT, "max_tokens": 40, "stop": "e sto"},
    "stop string, logprobs": {"prompt": PROMPT, "max_tokens": 40, "stop": ["x", "e sto"], "logprobs": 2},
    "logprobs": {"prompt": PROMPT, "max_tokens": 24, "logprobs": 3},
    "choices": {"prompt": [PROMPT, "seven "], "n": 2, "max_tokens": 24},
    "chat": {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 24, "logprobs": True, "top_logprobs": 1},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "canned"
    model_without_weights(folder)
    return folder


async def streamed(client: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    answer = await client.post(path, json={"model": "base", "stream": True, **USAGE, **body})
    assert answer.status_code == 200, answer.text
    *events, done = answer.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def merged(events: list[dict[str, Any]]) -> tuple[dict[int, Any], Any]:
    """What each choice has in the end, and the usage."""
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for one in event["choices"]:
            mine = choices.setdefault(one["index"], {"text": "", "logprobs": [], "finish": None})
            assert mine["finish"] is None, "nothing comes after the end"
            mine["text"] += one["text"] if "text" in one else one["delta"].get("content", "")
            mine["finish"] = one["finish_reason"]
            for lists in (one["logprobs"] or {}).values():
                mine["logprobs"] += lists or []
    return choices, events[-1]["usage"]


async def num_generated(client: httpx.AsyncClient) -> float:
    """The metric of all adapters."""
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("lorafleet_generation_tokens_total{"))


def sorted_logprobs(choices: dict[int, Any]) -> dict[int, Any]:
    return {index: {**one, "logprobs": sorted(map(json.dumps, one["logprobs"]))} for index, one in choices.items()}


@pytest.mark.parametrize("body", REQUESTS.values(), ids=REQUESTS.keys())
async def test_answers_do_not_depend_on_how_tokens_come(model: Path, body: dict[str, Any]) -> None:
    num_streams = len(body["prompt"]) * body["n"] if body.get("n") else 1
    found = []
    for at_once in (1, 7):
        async with (
            canned_pod(model, f"--at-once={at_once}", f"--streams={num_streams}") as served,
            httpx.AsyncClient(base_url=served.url, trust_env=False) as client,
        ):
            events = await streamed(client, body)
            choices, usage = merged(events)
            found.append((sorted_logprobs(choices), usage))
    assert found[0] == found[1]
    assert len(found[0][0]) == num_streams


async def test_what_comes_together_is_one_event(model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    async with (
        canned_pod(model, "--at-once=24") as served,
        httpx.AsyncClient(base_url=served.url, trust_env=False) as client,
    ):
        before = await num_generated(client)
        events = await streamed(client, {"prompt": PROMPT, "max_tokens": 24})
        stopped = await streamed(client, {"prompt": PROMPT, "max_tokens": 24, "stop": "two"})
        counted = await num_generated(client) - before
    assert len(events) == 2, "the text, and the usage"
    (choice,), usage = events[0]["choices"], events[1]["usage"]
    token_ids = tokenizer.encode(PROMPT).ids
    assert choice["text"] == tokenizer.decode([token_ids[at % len(token_ids)] for at in range(24)])
    assert choice["finish_reason"] == "length"
    assert usage["completion_tokens"] == 24
    (choice,), usage = stopped[0]["choices"], stopped[-1]["usage"]
    assert choice["text"] == PROMPT.partition("two")[0]
    assert choice["finish_reason"] == "stop"
    assert 0 < usage["completion_tokens"] < 24, "tokens after the stop string are not the answer's"
    assert counted == 24 + usage["completion_tokens"]


@pytest.mark.parametrize(
    "fields", [{"prompt_logprobs": 10}, {"echo": True, "logprobs": 10, "stream": True}], ids=["whole", "echoed"]
)
async def test_the_event_loop_goes_on_while_the_log_probabilities_of_a_long_prompt_are_written(
    model: Path, fields: dict[str, Any]
) -> None:
    num_tokens = 20_000
    body = {"model": "base", "prompt": [5] * num_tokens, "max_tokens": 1, **fields}
    async with (
        canned_pod(model) as served,
        httpx.AsyncClient(base_url=served.url, trust_env=False, timeout=120) as client,
    ):
        ask = partial(client.post, "/v1/completions", json=body)
        longest, response = await best_longest_turn(ask, below=0.4)
    answer = response.text
    if "stream" in fields:
        (choice,) = json.loads(answer.partition("data: ")[2].partition("\n")[0])["choices"]
        assert len(choice["logprobs"]["tokens"]) >= num_tokens
    else:
        (choice,) = json.loads(answer)["choices"]
        places = choice["prompt_logprobs"]
        assert (len(places), places[0], len(places[1])) == (num_tokens, None, 10)
    assert longest < 0.4, "written at once they take twice as long"
