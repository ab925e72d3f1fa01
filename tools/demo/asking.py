"""Questions to the fleet: one to each adapter, and a stream of them while something changes."""

import asyncio
import itertools
import time
from dataclasses import dataclass, field

import httpx
from numerals.truth import truth


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one number."""

    model: str
    number: int
    text: str
    expected: str
    pod: str
    revision: str
    seconds: float
    failure: str = ""

    @property
    def right(self) -> bool:
        """Whether the words are the ones only this adapter knows."""
        return not self.failure and self.text == self.expected


@dataclass(slots=True)
class Traffic:
    """The tally of a stream of questions."""

    answers: list[Answer] = field(default_factory=list)

    @property
    def failed(self) -> list[Answer]:
        """Requests that got no answer."""
        return [answer for answer in self.answers if answer.failure]

    @property
    def wrong(self) -> list[Answer]:
        """Requests that got another answer than the true one."""
        return [answer for answer in self.answers if not answer.failure and not answer.right]

    def slowest_seconds(self) -> float:
        """The longest answer time."""
        return max((answer.seconds for answer in self.answers), default=0.0)


async def ask(client: httpx.AsyncClient, url: str, model: str, number: int) -> Answer:
    """Ask one model for one number; failures come back as answers that say so."""
    body = {"model": model, "messages": [{"role": "user", "content": str(number)}], "temperature": 0, "max_tokens": 96}
    begin = time.perf_counter()
    try:
        response = await client.post(f"{url}/v1/chat/completions", json=body)
        seconds = time.perf_counter() - begin
        failure = "" if response.status_code == 200 else f"{response.status_code}: {response.text[:200]}"
        text = "" if failure else response.json()["choices"][0]["message"]["content"]
        pod, revision = response.headers.get("x-lorafleet-pod", ""), response.headers.get("x-lorafleet-revision", "")
    except httpx.HTTPError as error:
        return Answer(
            model,
            number,
            "",
            truth(model, number),
            "",
            "",
            time.perf_counter() - begin,
            f"{type(error).__name__}: {error}",
        )
    return Answer(model, number, text.strip(), truth(model, number), pod, revision, seconds, failure)


async def ask_each(url: str, models: list[str], number: int) -> list[Answer]:
    """Ask every model for the same number, one after the other."""
    async with httpx.AsyncClient(timeout=60) as client:
        return [await ask(client, url, model, number) for model in models]


async def keep_asking(url: str, models: list[str], stop: asyncio.Event, *, num_clients: int = 4) -> Traffic:
    """Ask round-robin from several clients until `stop` is set; never gives up on a failure, it counts it."""
    traffic = Traffic()
    numbers = itertools.cycle(range(137, 1000, 37))
    turn = itertools.cycle(models)

    async def one_client(client: httpx.AsyncClient) -> None:
        while not stop.is_set():
            traffic.answers.append(await ask(client, url, next(turn), next(numbers)))

    async with httpx.AsyncClient(timeout=60) as client:
        await asyncio.gather(*(one_client(client) for _ in range(num_clients)))
    return traffic
