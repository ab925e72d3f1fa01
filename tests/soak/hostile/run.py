"""One run: a quiet time in which a tenant learns its answers, the pod's rate, the storm, and the calm after it."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from soak.hostile import artifacts
from soak.hostile.attackers import CALM_SECONDS, TIMES_THE_RATE
from soak.hostile.client import ask
from soak.hostile.fields import COMPLETIONS, text_of
from soak.hostile.tenant import Tenant, percentile
from soak.hostile.verdict import Bound, bounds
from soak.hostile.watch import API, Watch
from soak.hostile.world import BASE, COLD, NUM_RESIDENT, OWN, TOOLED, Ledger, Target
from support.declared_pod import ADMIN_TOKEN, DeclaredPod, serve_declared
from support.tiny_llama import make_base

NUM_NOISE, NUM_CHURN = 10, 6
DISK_MIB = 16
OPTIONS = (
    f"--max-resident-adapters={NUM_RESIDENT}",
    "--kv-cache-memory=1Mi",
    "--host-cache=512Ki",
    f"--disk-cache={DISK_MIB}Mi",
    "--max-waiting-requests=256",
    "--max-batch-requests=128",
    "--max-connections=1024",
    "--client-timeout-seconds=15",
    "--answer-memory=16Mi",
    "--vllm-lora-routes",
)
"""Little of everything, so that there is preemption, eviction and refusal all the time."""


@dataclass(frozen=True)
class Settings:
    """What a run is asked for."""

    seconds: float
    seed: int
    sample_seconds: float = 5.0
    num_cases: int = 48
    """Requests of the tenant whose answers are known."""
    only: tuple[str, ...] = ()
    """Names of attacks; none means all."""


@dataclass(frozen=True)
class Run:
    """Who takes part."""

    declared: DeclaredPod
    target: Target
    ledger: Ledger
    tenant: Tenant
    watch: Watch
    settings: Settings

    def say(self, words: str) -> None:
        """Write a line of progress."""
        print(f"[{self.watch.now_seconds:7.1f} s] {words}", flush=True)


async def run(declared: DeclaredPod, settings: Settings) -> dict[str, Any]:
    """Return what happened, as the result file has it."""
    target = await asyncio.to_thread(_prepared, declared, settings.seed)
    ledger = Ledger()
    async with aiohttp.ClientSession() as session:
        watch = Watch(declared.pod, _cache_of(declared), ledger)
        tenant = Tenant(target, session, ledger, num_cases=settings.num_cases)
        return await _phases(Run(declared, target, ledger, tenant, watch, settings))


def _cache_of(declared: DeclaredPod) -> Path:
    option = "--cache-dir="
    given = declared.pod.process.args
    assert isinstance(given, list)
    return next(Path(str(one).removeprefix(option)) for one in given if str(one).startswith(option))


def _prepared(declared: DeclaredPod, seed: int) -> Target:
    """Write all adapters and load the good ones, the wild and the crafty."""
    rng = random.Random(f"{seed}-prompts")
    target = Target(
        declared.pod.url,
        declared.pod.admin_url,
        ADMIN_TOKEN,
        str(declared.volume),
        seed,
        noise=[f"noise-{number}" for number in range(NUM_NOISE)],
        churn=[f"churn-{number}" for number in range(NUM_CHURN)],
        wild=artifacts.write_wild(declared.original, declared.volume),
        crafty=artifacts.write_crafty(declared.original, declared.volume),
        poison=artifacts.write_poison(declared.original, declared.volume),
        prompts=[text_of(rng, count) for count in (1, 2, 5, 9, 14, 20, 24, 30)],
    )
    for name in (OWN, COLD, *target.noise, *target.churn):
        declared.adapter(declared.volume, name)
    (declared.volume / OWN / "chat_template.jinja").write_text("{{ bos_token }}Q: {{ messages[-1]['content'] }} A:")
    (declared.volume / TOOLED / "chat_template.jinja").write_text(
        "{% if tools %}{{ tools[0]['type'] }}{% endif %}{{ messages[-1]['content'] }}{# <tool_call> #}"
    )
    for name in (OWN, COLD, *target.noise, *target.churn, *target.wild, *target.crafty):
        declared.admin.put(name, "volume", name, pinned=name == OWN)
    return target


async def _phases(run: Run) -> dict[str, Any]:
    tenant, watch, seconds = run.tenant, run.watch, run.settings.seconds
    before, files_before = _identity(run), watch.now().files[API]
    run.say("the tenant learns its answers")
    await tenant.record()
    rate = await _rate(run.target, seconds=max(3.0, min(20.0, seconds / 20)))
    run.say(f"the pod answers {rate:.0f} requests a second; {TIMES_THE_RATE:g} times as many come now")
    async with _watched(run):
        storm = await _storm(run, rate)
        await _calm(run)
        run.say("the storm is over, and the tenant asks everything once more")
        await tenant.ask_all()
        watch.samples.append(watch.now())
    if run.declared.pod.process.poll() is not None or before != _identity(run):
        run.ledger.find("restart", f"{before} has become {_identity(run)}")
    _look_into_logs(run)
    held = bounds(watch, tenant, rate, storm=storm, files_before=files_before, disk_mib=DISK_MIB + 4)
    for one in held:
        if not one.holds:
            run.ledger.find("bound", f"{one.name}: {one.value} and not at most {one.at_most}")
    return _result(run, rate, storm, held)


def _identity(run: Run) -> tuple[int, list[int], str]:
    """What a restart of the pod or of its engine changes."""
    return run.declared.pod.process.pid, run.watch.engine_pids(), run.declared.admin.state().boot_id


async def _rate(target: Target, *, seconds: float) -> float:
    """Requests a second that the pod answers, of 32 clients that ask for 16 tokens of any adapter."""
    until, number = time.monotonic() + seconds, 0

    async def client(session: aiohttp.ClientSession, rng: random.Random) -> None:
        nonlocal number
        while time.monotonic() < until:
            body = {"model": rng.choice([BASE, *target.noise]), "prompt": text_of(rng, 10), "max_tokens": 16}
            answer = await ask(session, f"{target.url}{COMPLETIONS}", json.dumps(body).encode())
            assert answer.status == 200, answer
            number += time.monotonic() < until

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*[client(session, target.randomness(f"rate-{index}")) for index in range(32)])
    return max(number, 1) / seconds


@contextlib.asynccontextmanager
async def _watched(run: Run) -> AsyncIterator[None]:
    """Sample, ask for health and say how it goes, meanwhile."""
    tasks = [
        asyncio.create_task(run.watch.sample(run.settings.sample_seconds)),
        asyncio.create_task(run.watch.ask_health()),
        asyncio.create_task(run.watch.count_steps()),
        asyncio.create_task(_progress(run)),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _storm(run: Run, rate: float) -> tuple[float, float]:
    """Let the attackers go to work while the tenant asks; return when it began and ended."""
    seconds, began = run.settings.seconds, run.watch.now_seconds
    orders = {"target": asdict(run.target), "rate": rate, "seconds": seconds, "only": run.settings.only}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "soak.hostile.attackers"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
    )
    telling = asyncio.create_task(process.communicate(json.dumps(orders).encode()))
    try:
        await run.tenant.go_on(seconds)
        ended = run.watch.now_seconds
        ledger, _ = await asyncio.wait_for(telling, 2 * CALM_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        run.ledger.find("script", f"the attackers ended with {process.returncode}")
    else:
        run.ledger.add(json.loads(ledger))
    return began, ended


async def _calm(run: Run) -> None:
    """Wait for a pod that holds nothing of what was."""
    left: dict[str, float] = {}
    for _ in range(60):
        left = await asyncio.to_thread(_left, run.declared)
        if not left:
            return
        await asyncio.sleep(0.5)
    run.ledger.find("leak", f"when all have gone the pod still has {left}")


def _left(declared: DeclaredPod) -> dict[str, float]:
    """What a pod that does nothing still counts as under way."""
    names = ("lorafleet_requests_running", "lorafleet_requests_waiting")
    found = {name: declared.pod.metric(f'{name}{{base="{BASE}"}}') for name in names}
    for one in declared.admin.state().adapters:
        found[f"requests of {one.name}@{one.revision}"] = one.num_in_flight
    return {name: value for name, value in found.items() if value}


async def _progress(run: Run) -> None:
    tenant, watch = run.tenant, run.watch
    while True:
        await asyncio.sleep(30)
        memory = ", ".join(f"{role} {mib:.0f}" for role, mib in watch.samples[-1].memory_mib.items())
        run.say(
            f"tenant {tenant.num_right} right, p95 {percentile(tenant.waits.whole[-100:], 0.95):.2f} s, MiB {memory}, files "
            f"{watch.samples[-1].files[API]}, /health p95 {percentile([late for _, late in watch.health[-60:]], 0.95):.2f} s, "
            f"findings {sum(run.ledger.num_findings.values())}"
        )


def _look_into_logs(run: Run) -> None:
    """Whatever the pod did not expect stands in its log with a traceback."""
    logs, head = run.declared.pod.logs, "Traceback (most recent call last)"
    place = logs.find(head)
    if place >= 0:
        run.ledger.find("log", f"{logs.count(head)} tracebacks, the first: {logs[max(0, place - 500) : place + 6000]}")
    if Path("/tmp/lorafleet-soak-was-here").exists():
        run.ledger.find("pickle", "a pickle was loaded")


def _result(run: Run, rate: float, storm: tuple[float, float], held: list[Bound]) -> dict[str, Any]:
    ledger, tenant = run.ledger, run.tenant
    waits = zip(tenant.waits.at, tenant.waits.first, tenant.waits.whole, tenant.waits.model, strict=True)
    return {
        "settings": {**asdict(run.settings), "options": OPTIONS, "times_the_rate": TIMES_THE_RATE},
        "rate_requests_per_second": round(rate, 1),
        "storm_seconds": [round(one, 1) for one in storm],
        "num_answers": ledger.num_answers,
        "outcomes": {kind: dict(sorted(found.items())) for kind, found in sorted(ledger.outcomes.items())},
        "tenant": tenant.summary(),
        "bounds": [{**asdict(one), "holds": one.holds} for one in held],
        "num_findings": dict(ledger.num_findings),
        "findings": ledger.findings,
        "samples": [asdict(one) for one in run.watch.samples],
        "waits": [[round(at, 1), round(first, 3), round(whole, 3), model] for at, first, whole, model in waits],
        "steps": [[round(at, 2), number] for at, number in run.watch.steps],
        "health": [[round(value, 3) for value in one] for one in run.watch.health],
    }


def soak(settings: Settings, *, keep_log: Path | None = None) -> dict[str, Any]:
    """Start a pod, run, and return the result."""
    with tempfile.TemporaryDirectory(prefix="lorafleet-soak-") as folder:
        base = Path(folder) / "base"
        make_base(base)
        with serve_declared(base, Path(folder) / "root", *OPTIONS, forked=False) as declared:
            try:
                return asyncio.run(run(declared, settings))
            finally:
                if keep_log is not None:
                    shutil.copy(declared.pod.log_file, keep_log)
