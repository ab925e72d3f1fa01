"""Whatever a request brings along, the event loop, and with it everybody's streams and probes, goes on meanwhile."""

import gc
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from support.canned_pod import canned_pod, model_without_weights
from support.turns import best_longest_turn

MOST_SECONDS = 0.15
"""Of CPU in one turn. Each of these takes a third of it, and twice it or more in a loop that does all by itself."""
COMPLETIONS, CHAT, RESPONSES, TOKENIZE = "/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize"
GBNF = "root ::= " + " | ".join(f'"{number}"' for number in range(900))
USER = {"role": "user", "content": "one"}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "texts": (COMPLETIONS, {"prompt": ["seven eight " * 660] * 100}),
    "a grammar of many prompts": (COMPLETIONS, {"prompt": ["one"] * 100, "guided_grammar": GBNF}),
    "empty lines for a grammar": (CHAT, {"messages": [USER], "guided_grammar": "\n" * 13_000}),
    "messages": (CHAT, {"messages": [USER] * 13_000}),
    "items": (RESPONSES, {"input": [USER] * 13_000, "max_output_tokens": 1}),
    "wrong biases": (COMPLETIONS, {"prompt": "one", "logit_bias": {f"a{number}": 1 for number in range(65_000)}}),
    "a text as LoRAX tokenises it": (TOKENIZE, {"inputs": "seven eight " * 85_000}),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    folder = tmp_path_factory.mktemp("models") / "canned"
    model_without_weights(folder)
    async with (
        canned_pod(folder) as served,
        httpx.AsyncClient(base_url=served.url, trust_env=False, timeout=120) as client,
    ):
        gc.collect()
        gc.freeze()  # the tests' own objects are no matter of the pod's
        yield client
        gc.unfreeze()


@pytest.mark.parametrize(("path", "fields"), REQUESTS.values(), ids=REQUESTS)
@pytest.mark.asyncio(loop_scope="module")
async def test_the_event_loop_goes_on(client: httpx.AsyncClient, path: str, fields: dict[str, Any]) -> None:
    if path in (COMPLETIONS, CHAT):
        fields = {"max_tokens": 1, **fields}
    model = {} if "inputs" in fields else {"model": "base"}
    body = json.dumps({**model, **fields}).encode()
    longest, answer = await best_longest_turn(lambda: client.post(path, content=body), below=MOST_SECONDS)
    assert answer.status_code in (200, 400), answer.text
    assert longest < MOST_SECONDS
