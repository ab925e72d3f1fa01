"""All held-out numbers through an OpenAI-compatible API, as any client would ask them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from numerals.truth import WRITERS, truth

MAX_ANSWER_TOKENS = 48
TIMEOUT_SECONDS = 120.0


class AskingError(Exception):
    """The API did not answer a question; the text has what it said instead."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """An answer that is not the true one."""

    number: int
    answer: str
    expected: str


@dataclass(frozen=True, slots=True)
class Score:
    """How one model did."""

    model: str
    num_asked: int
    wrong: tuple[Wrong, ...]

    @property
    def share_right(self) -> float:
        """Between 0 and 1."""
        return 1 - len(self.wrong) / self.num_asked


async def known_models(url: str) -> list[str]:
    """Return those models of an API that `truth` knows, in the order of WRITERS.

    Raises:
        AskingError: it does not answer, or with something else than a list of models.
    """
    async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False) as client:
        response = await _request(client, "GET", f"{url}/v1/models")
        offered = {model["id"] for model in response.json()["data"]}
    return [model for model in WRITERS if model in offered]


async def ask_all(url: str, questions: Sequence[tuple[str, int]], *, num_clients: int = 16) -> list[Score]:
    """Ask (model, number) questions greedily, in their order, `num_clients` at a time; return a score for each model.

    Raises:
        AskingError: a question got no answer.
    """
    wrong: dict[str, list[Wrong]] = {model: [] for model, _ in questions}
    turn = iter(questions)

    async def one_client(client: httpx.AsyncClient) -> None:
        for model, number in turn:
            answer = await _answer(client, url, model, number)
            if answer != (expected := truth(model, number)):
                wrong[model].append(Wrong(number, answer, expected))

    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False) as client, asyncio.TaskGroup() as group:
            for _ in range(num_clients):
                group.create_task(one_client(client))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    asked = [model for model, _ in questions]
    return [Score(model, asked.count(model), tuple(found)) for model, found in wrong.items()]


async def _answer(client: httpx.AsyncClient, url: str, model: str, number: int) -> str:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": str(number)}],
        "temperature": 0,
        "max_tokens": MAX_ANSWER_TOKENS,
    }
    response = await _request(client, "POST", f"{url}/v1/chat/completions", body)
    return str(response.json()["choices"][0]["message"]["content"])


async def _request(client: httpx.AsyncClient, method: str, url: str, body: object = None) -> httpx.Response:
    try:
        response = await client.request(method, url, json=body)
    except httpx.HTTPError as error:
        raise AskingError(f"{url} does not answer: {type(error).__name__} {error}") from error
    if response.status_code != 200:
        raise AskingError(f"{url} answers {response.status_code}: {response.text[:300]}")
    return response
