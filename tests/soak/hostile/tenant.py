"""One who behaves: asks the base and adapters of its own, and knows from a quiet time what each answer has to be."""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from soak.hostile.client import Answer, ask
from soak.hostile.fields import CHAT, COMPLETIONS, text_of
from soak.hostile.world import BASE, COLD, OWN, Ledger, Target

NUM_ASKING = 3
PAUSE_SECONDS = 0.2
"""Between two requests of one asker, on average."""
LOGPROB_TOLERANCE = 1e-3
NEAR_TIE = 2e-3
"""Two most likely tokens nearer than this may change places with the rounding of another batch; such a case is not taken."""
PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Case:
    """A request whose answer is known."""

    path: str
    body: dict[str, Any]
    answer: "Known"


@dataclass(frozen=True)
class Known:
    """What has to be the same: texts, ends and usage exactly, log-probabilities within rounding."""

    texts: tuple[str, ...]
    finishes: tuple[str | None, ...]
    usage: tuple[int, int]
    tokens: tuple[tuple[str, ...], ...]
    logprobs: tuple[float, ...]
    least_gap: float
    """Between the two most likely tokens, where it can be seen."""

    def difference(self, other: "Known") -> str | None:
        """Say how another answer differs; None if it does not."""
        for name in ("texts", "finishes", "usage", "tokens"):
            mine, others = getattr(self, name), getattr(other, name)
            if mine != others:
                return f"{name}: {others!r} and not {mine!r}"
        furthest = max((abs(a - b) for a, b in zip(self.logprobs, other.logprobs, strict=True)), default=0.0)
        if not furthest <= LOGPROB_TOLERANCE:  # NaN is not
            return f"log-probabilities differ by up to {furthest}"
        return None


@dataclass
class Waits:
    """How long the tenant waited, and when."""

    at: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    model: list[str] = field(default_factory=list)

    def note(self, at: float, model: str, answer: Answer) -> None:
        self.at.append(at)
        self.model.append(model)
        self.first.append(answer.first_seconds)
        self.whole.append(answer.seconds)


class Tenant:
    """Asks, checks and measures."""

    def __init__(self, target: Target, session: aiohttp.ClientSession, ledger: Ledger, *, num_cases: int) -> None:
        self._num_cases = num_cases
        self._target = target
        self._session = session
        self._ledger = ledger
        self._began = time.monotonic()
        self._rng = target.randomness("tenant")
        self.cases: list[Case] = []
        self.quiet = Waits()
        self.waits = Waits()
        self.num_right = 0
        self.num_overloaded = 0
        """Answers 429 for the base, whose share others use up too; asked again."""
        self.num_near_ties = 0

    async def record(self) -> None:
        """Learn the answers, each asked twice while nothing else runs."""
        while len(self.cases) < self._num_cases:
            number = len(self.cases)
            path, body = _body(self._rng, number, self._target.prompts)
            first, second = await self._ask(path, body), await self._ask(path, body)
            for answer in (first, second):
                assert answer.status == 200, f"in quiet: {answer.outcome} {answer.text[:500]} to {body}"
                self.quiet.note(time.monotonic() - self._began, body["model"], answer)
            known = known_of(first)
            if known.least_gap < NEAR_TIE:
                self.num_near_ties += 1
                continue
            told = known.difference(known_of(second))
            if told is not None:
                self._ledger.find("tenant", f"two answers in quiet differ: {told} to {body}")
            self.cases.append(Case(path, body, known))

    async def ask_all(self) -> None:
        """Ask each case once."""
        for case in self.cases:
            await self._check(case, self.quiet)

    async def go_on(self, seconds: float) -> None:
        """Ask with a few askers for so long."""
        until = time.monotonic() + seconds
        await asyncio.gather(*[self._asker(until, number) for number in range(NUM_ASKING)])

    async def _asker(self, until: float, number: int) -> None:
        rng = self._target.randomness(f"asker-{number}")
        while time.monotonic() < until:
            await self._check(rng.choice(self.cases), self.waits)
            await asyncio.sleep(rng.expovariate(1 / PAUSE_SECONDS))

    async def _check(self, case: Case, waits: Waits) -> None:
        answer = await self._ask(case.path, case.body)
        if answer.status == 429 and case.body["model"] == BASE:
            self.num_overloaded += 1
            return
        waits.note(time.monotonic() - self._began, case.body["model"], answer)
        self._ledger.count("tenant", answer.outcome)
        if answer.status != 200 or answer.error is not None:
            self._ledger.find("tenant", f"{answer.outcome} {answer.text[:500]}\n  asked: {json.dumps(case.body)}")
            return
        told = case.answer.difference(known_of(answer))
        if told is None:
            self.num_right += 1
        else:
            self._ledger.find("tenant", f"a wrong answer: {told}\n  asked: {json.dumps(case.body)}")

    def summary(self) -> dict[str, Any]:
        """How it went."""
        return {
            "cases": len(self.cases),
            "near_ties_left_out": self.num_near_ties,
            "right": self.num_right,
            "base_overloaded": self.num_overloaded,
            "quiet_p95_seconds": round(percentile(self.quiet.whole, 0.95), 3),
            "seconds_by_model": {model: self.seconds_of(model) for model in (OWN, COLD, BASE)},
        }

    def seconds_of(self, model: str) -> dict[str, float]:
        """How long the whole answers of a model took in the storm."""
        found = [whole for whole, name in zip(self.waits.whole, self.waits.model, strict=True) if name == model]
        shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
        return {name: round(percentile(found, share), 3) for name, share in shares.items()}

    async def _ask(self, path: str, body: dict[str, Any]) -> Answer:
        data = json.dumps(body).encode()
        return await ask(self._session, f"{self._target.url}{path}", data, seconds=PATIENCE_SECONDS)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share lies; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _body(rng: random.Random, number: int, prompts: list[str]) -> tuple[str, dict[str, Any]]:
    """Return a request: greedy with log-probabilities, or sampled with a seed, streamed or whole."""
    text = rng.choice(prompts) if number % 2 else text_of(rng, rng.choice((1, 4, 12, 24)))
    body: dict[str, Any] = {"model": (OWN, BASE, OWN, COLD)[number % 4], "max_tokens": rng.choice((8, 16, 32))}
    path = (COMPLETIONS, CHAT)[(number // 4) % 2]
    if path == CHAT:
        body["messages"] = [{"role": "user", "content": text}]
    else:
        body["prompt"] = text
    if number % 3:
        body |= {"temperature": 0}
        body |= {"logprobs": True, "top_logprobs": 2} if path == CHAT else {"logprobs": 2}
    else:
        body |= {"temperature": 0.8, "seed": rng.getrandbits(40), "n": rng.choice((1, 1, 2))}
        body |= rng.choice([{}, {"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.02}, {"repetition_penalty": 1.2}])
    if (number // 2) % 2:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return path, body


def known_of(answer: Answer) -> Known:
    """Read an answer, a stream as if it were whole."""
    events = (
        [json.loads(one) for one in answer.events if one != "[DONE]"] if answer.is_stream else [json.loads(answer.text)]
    )
    usage = events[-1]["usage"]
    parts = [choice for event in events for choice in event["choices"]]
    texts, finishes, tokens, logprobs, gap = [], [], [], [], float("inf")
    for index in range(1 + max(part["index"] for part in parts)):
        own = [part for part in parts if part["index"] == index]
        texts.append("".join(_text(part) for part in own))
        finishes.append(own[-1]["finish_reason"])
        shown = [one for part in own for one in _logprobs(part.get("logprobs"))]
        tokens.append(tuple(token for token, _, _ in shown))
        logprobs += [value for _, value, _ in shown]
        gap = min([gap, *(best[0] - best[1] for _, _, best in shown if len(best) > 1)])
    return Known(
        tuple(texts),
        tuple(finishes),
        (usage["prompt_tokens"], usage["completion_tokens"]),
        tuple(tokens),
        tuple(logprobs),
        gap,
    )


def _text(part: dict[str, Any]) -> str:
    if "text" in part:
        return part["text"]
    return (part.get("delta") or part.get("message") or {}).get("content") or ""


def _logprobs(found: dict[str, Any] | None) -> list[tuple[str, float, list[float]]]:
    """Tokens, their log-probabilities, and those of the most likely ones."""
    if not found:
        return []
    if "content" in found:
        return [
            (one["token"], one["logprob"], sorted((top["logprob"] for top in one["top_logprobs"]), reverse=True))
            for one in found["content"] or []
        ]
    tops = [sorted((top or {}).values(), reverse=True) for top in found["top_logprobs"]]
    return list(zip(found["tokens"], found["token_logprobs"], tops, strict=True))
