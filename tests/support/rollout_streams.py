"""Streamed requests while revisions roll out: what came of each, and what `status.traffic` said meanwhile."""

import asyncio
import itertools
import json
import math
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import aiohttp
from demo.kube import Kube

TIMEOUT_SECONDS = 120.0


class Ending(StrEnum):
    """How a request ended, as its client sees it."""

    WHOLE = "whole"
    """200, and `[DONE]`."""
    REFUSED = "refused"
    """Another status, with an error in its body."""
    ERROR_EVENT = "error event"
    """The stream had begun, and its last event says what went wrong."""
    BROKEN = "broken"
    """The stream had begun, and its connection broke: clients raise an error."""
    UNANSWERED = "unanswered"
    """No answer came."""
    CUT_SHORT = "cut short"
    """The stream ended as if it were whole, and it was not: a client takes a part for the answer."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """One request."""

    number: int
    sent: float
    ended: float
    """Both on the clock of `time.monotonic`."""
    ending: Ending
    revision: str = ""
    """The one that answered, also with an error; empty where nobody says."""
    pod: str = ""
    text: str = ""
    error: str = ""
    """Code of the error, or what the connection met."""


@dataclass(slots=True)
class Streams:
    """Requests that have ended, while others run."""

    ended: list[Streamed] = field(default_factory=list)


async def stream(session: aiohttp.ClientSession, url: str, model: str, number: int) -> Streamed:
    """Ask for one number; whatever happens comes back."""
    messages = [{"role": "user", "content": str(number)}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 96, "stream": True}
    sent = time.monotonic()
    ending, revision, pod, text, error = Ending.UNANSWERED, "", "", "", ""
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            ending = Ending.BROKEN
            revision, pod = (response.headers.get(f"x-lorafleet-{name}", "") for name in ("revision", "pod"))
            if response.status != 200:
                ending, error = Ending.REFUSED, code_of(await response.json())
            else:
                ending, text, error = read_events((await response.read()).decode())
    except (aiohttp.ClientError, TimeoutError, OSError) as problem:
        error = f"{type(problem).__name__}: {problem}"
    return Streamed(number, sent, time.monotonic(), ending, revision, pod, text.strip(), error)


def read_events(body: str) -> tuple[Ending, str, str]:
    """Return how a stream of events ended, the text of its answer, and the code of its error."""
    text = ""
    for event in body.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in event.splitlines() if ": " in line)
        data = lines.get("data", "")
        if lines.get("event") == "error":
            return Ending.ERROR_EVENT, text, code_of(json.loads(data))
        if data == "[DONE]":
            return Ending.WHOLE, text, ""
        if data:
            text += "".join(choice["delta"].get("content") or "" for choice in json.loads(data)["choices"])
    return Ending.CUT_SHORT, text, ""


def code_of(document: Any) -> str:
    """Return the code of an error in OpenAI's shape."""
    return str(document["error"]["code"])


@contextmanager
def streaming(found: Streams, url: str, model: str, numbers: list[int], *, num_clients: int) -> Iterator[None]:
    """Ask from several clients, each one request after the other, while the block runs; all have ended after it."""
    enough, loop = asyncio.Event(), asyncio.new_event_loop()
    turn = itertools.cycle(numbers)

    async def one_client(session: aiohttp.ClientSession) -> None:
        while not enough.is_set():
            found.ended.append(await stream(session, url, model, next(turn)))

    async def run() -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            await asyncio.gather(*(one_client(session) for _ in range(num_clients)))

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(enough.set)
        thread.join()
        loop.close()


@dataclass(frozen=True, slots=True)
class Said:
    """What a status said from some moment on."""

    since: float
    """On the clock of `time.monotonic`, when it was heard."""
    stable: str
    weights: dict[str, int]
    """Revision -> percent."""


@dataclass(slots=True)
class Timeline:
    """What a status said of its traffic, one after the other."""

    said: list[Said] = field(default_factory=list)

    def hear(self, at: float, line: str) -> None:
        """Take in `STABLE|TRAFFIC`, as a watch prints it; one traffic of one revision, or none, is all of the stable one's."""
        stable, _, traffic = line.strip().partition("|")
        if not stable:
            return
        shares = {share["revision"]: share["weight"] for share in json.loads(traffic or "[]")}
        weights = shares if len(shares) > 1 else {stable: 100}
        if not self.said or (self.said[-1].stable, self.said[-1].weights) != (stable, weights):
            self.said.append(Said(at, stable, weights))

    def intervals(self) -> Iterator[tuple[float, float, Said]]:
        """Yield since when and until when each was said."""
        ends = [later.since for later in self.said[1:]] + [math.inf]
        for said, end in zip(self.said, ends, strict=True):
            yield said.since, end, said

    def allowed(self, sent: float, ended: float, *, slack_seconds: float) -> set[str]:
        """Return the revisions that might answer a request at some moment of it, and so much before and after.

        The stable one is always among them: it answers where a canary cannot be had.
        """
        found: set[str] = set()
        for begin, end, said in self.intervals():
            if begin <= ended + slack_seconds and end >= sent - slack_seconds:
                found |= {revision for revision, weight in said.weights.items() if weight} | {said.stable}
        return found


@contextmanager
def watched(kube: Kube, namespace: str, name: str) -> Iterator[Timeline]:
    """Hear what a LoraAdapter's status says of its traffic while the block runs."""
    found = Timeline()
    path = '{.status.stableRevision}|{.status.traffic}{"\\n"}'
    command = [kube.kubectl_path, "get", "lora", name, "-n", namespace, "--watch", "-o", f"jsonpath={path}"]
    environment = {**os.environ, "KUBECONFIG": str(kube.kubeconfig)} if kube.kubeconfig is not None else None
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert program.stdout is not None
    lines = program.stdout

    def listen() -> None:
        for line in lines:
            found.hear(time.monotonic(), line)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield found
    finally:
        program.terminate()
        program.wait()
        thread.join()
        lines.close()


def binomial_bounds(num: int, share: float, false_alarm: float) -> tuple[int, int]:
    """Return the least and the most of `num` independent draws that may have come out with probability `share` each.

    What lies below, or above, has a probability of at most half of `false_alarm` each.
    """
    logs = [
        math.lgamma(num + 1) - math.lgamma(k + 1) - math.lgamma(num - k + 1) + k * math.log(share)
        + (num - k) * math.log1p(-share)
        for k in range(num + 1)
    ]  # fmt: skip
    chances = [math.exp(value) for value in logs]
    low = next(k for k, sum_ in enumerate(itertools.accumulate(chances)) if sum_ > false_alarm / 2)
    high = next(num - k for k, sum_ in enumerate(itertools.accumulate(reversed(chances))) if sum_ > false_alarm / 2)
    return low, high
