"""What all of a run share: the pod, the names that are in use, and what happened."""

import asyncio
import math
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from soak.hostile.client import Answer, ask, undocumented

MAX_FINDINGS = 40
"""Of the same kind are kept in words; all are counted."""
BASE = "tiny"
OWN, COLD = "tenant", "tenant-cold"
"""The tenant's adapters: one pinned, one that others' loads may evict."""
NUM_RESIDENT = 12
"""Adapters that fit on the device."""
TOOLED = "noise-0"
"""One of the good adapters of others; its chat template has a place for tools."""


@dataclass(frozen=True)
class Target:
    """The pod, and what it was given."""

    url: str
    admin_url: str
    admin_token: str
    volume: str
    """Folder of the declared source."""
    seed: int
    noise: list[str]
    """Good adapters of others that are there all the time."""
    churn: list[str]
    """Names that come and go and change their content."""
    wild: list[str]
    """Adapters that are accepted and whose numbers overflow."""
    crafty: list[str]
    """Adapters that are accepted and whose chat templates misbehave when they are asked to."""
    poison: list[str]
    """Folders of the volume that must be refused."""
    prompts: list[str]
    """The tenant's own prompts: others send them too, on their own adapters."""

    def randomness(self, name: str) -> random.Random:
        """A source of random numbers of its own for each purpose."""
        return random.Random(f"{self.seed}-{name}")


@dataclass
class Ledger:
    """What was asked and answered, and what must not have been."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    num_findings: Counter[str] = field(default_factory=Counter)

    def count(self, kind: str, outcome: str) -> None:
        self.outcomes.setdefault(kind, Counter())[outcome] += 1

    def find(self, kind: str, words: str) -> None:
        """Note what must not be."""
        self.num_findings[kind] += 1
        if self.num_findings[kind] <= MAX_FINDINGS:
            self.findings.append(f"{kind}: {words}")
            print(f"FOUND {kind}: {words[:1000]}", file=sys.stderr, flush=True)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        outcomes = {kind: dict(found) for kind, found in self.outcomes.items()}
        return {"outcomes": outcomes, "findings": self.findings, "num_findings": dict(self.num_findings)}

    def add(self, other: dict[str, Any]) -> None:
        """Add another one, as `as_json` shows it."""
        for kind, outcomes in other["outcomes"].items():
            self.outcomes.setdefault(kind, Counter()).update(outcomes)
        self.findings += other["findings"]
        self.num_findings.update(other["num_findings"])

    @property
    def num_answers(self) -> int:
        """Of all but those who left, and what was not sent."""
        return sum(
            sum(found.values()) for kind, found in self.outcomes.items() if kind not in ("not sent", "leave", "slow")
        )


@dataclass
class World:
    """What those who misbehave work with."""

    target: Target
    session: aiohttp.ClientSession
    ends_at: float = math.inf
    """When the storm ends, by `time.monotonic`."""
    ledger: Ledger = field(default_factory=Ledger)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    long_texts: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(4))
    admin_calls: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(3))
    slow_readers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(24))
    crowds: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(12))

    @property
    def url(self) -> str:
        return self.target.url

    @property
    def address(self) -> tuple[str, int]:
        """Host and public port."""
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        return host, int(port)

    @property
    def volume(self) -> Path:
        return Path(self.target.volume)

    def some_model(self, rng: random.Random) -> str:
        """A name that is in use, now and then one that is not."""
        target = self.target
        pools = (target.noise, target.churn, target.wild, target.crafty, [BASE, BASE, "nobody", f"{target.noise[0]}@0"])
        return rng.choice(rng.choices(pools, weights=(8, 4, 1, 1, 2))[0])

    async def public(self, kind: str, path: str, body: bytes, **more: Any) -> Answer:
        """Send to the public port, count what came and note what should not have come."""
        answer = await ask(self.session, f"{self.url}{path}", body, **more)
        self.note(kind, answer, undocumented(answer), f"POST {path} {body[:600]!r} ({len(body)} bytes)")
        return answer

    def note(self, kind: str, answer: Answer, wrong: str | None, asked: str) -> None:
        """Count an answer, and what is wrong with it if anything is."""
        self.ledger.count(kind, answer.outcome)
        if wrong is not None:
            self.ledger.find(kind, f"{wrong}\n  asked: {asked}")

    def at_most(self, seconds: float) -> float:
        """Return how long somebody may hold something who leaves with the end of the storm."""
        return max(0.1, min(seconds, self.ends_at - time.monotonic()))
