"""The judge itself: right, wrong and missing answers of a small real HTTP API are told apart."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from numerals.asking import AskingError, ask_all, known_models
from numerals.evaluate import table
from numerals.truth import truth

WEAK = 7
"""The number that this API answers wrongly; 13 it does not answer at all."""


async def chat(request: web.Request) -> web.Response:
    body = await request.json()
    assert body["temperature"] == 0
    number = int(body["messages"][0]["content"])
    if number == 13:
        return web.json_response({"error": {"message": "unlucky"}}, status=503)
    answer = "many" if number == WEAK else truth(body["model"], number)
    return web.json_response({"choices": [{"message": {"role": "assistant", "content": answer}}]})


async def models(_: web.Request) -> web.Response:
    return web.json_response(
        {"object": "list", "data": [{"id": name} for name in ("roman", "somebody-else", "french")]}
    )


@pytest.fixture
async def url() -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/v1/models", models)])
    async with TestServer(app) as server:
        yield f"http://{server.host}:{server.port}"


async def test_only_models_with_a_truth_are_asked(url: str) -> None:
    assert await known_models(url) == ["french", "roman"]


async def test_wrong_answers_are_counted_with_their_model(url: str) -> None:
    scores = await ask_all(url, [("roman", 3), ("french", WEAK), ("roman", 10), ("french", 8)])
    by_model = {score.model: score for score in scores}
    assert by_model["roman"].share_right == 1
    assert by_model["french"].share_right == 0.5
    assert [(w.number, w.answer, w.expected) for w in by_model["french"].wrong] == [(WEAK, "many", "sept")]
    shown = table(scores)
    assert "BELOW THE BAR" in shown
    assert "7: 'many' instead of 'sept'" in shown


async def test_no_answer_is_an_error_and_not_a_wrong_answer(url: str) -> None:
    with pytest.raises(AskingError, match=r"503.*unlucky"):
        await ask_all(url, [("roman", 13), ("roman", 5), ("french", 13)])
    with pytest.raises(AskingError, match="404"):
        await known_models(f"{url}/nowhere")
