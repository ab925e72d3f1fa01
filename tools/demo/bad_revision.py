"""The demo's last act: a model owner commits the wrong files, and the fleet does not take them."""

import asyncio
import json
import shlex
import time
from collections.abc import Callable
from typing import Any

from demo.asking import Traffic, ask_each, keep_asking
from demo.kube import Kube, condition
from demo.progress import DemoError, Progress

ADAPTER = "roman"
WRONG = "french"
"""Whose files are committed as the next revision."""
NUMBER = 1987
QUESTION, EXPECTED = "4", "IV"
VERIFY = {
    "prompts": [
        {
            "name": "four",
            "messages": [{"role": "user", "content": QUESTION}],
            "maxTokens": 8,
            "expect": {"equals": EXPECTED},
        }
    ]
}
TIMEOUT_SECONDS = 60.0
NUM_CLIENTS = 2


def roll_out_a_bad_revision(kube: Kube, progress: Progress, url: str, namespace: str) -> None:
    """Commit it while clients ask the adapter, tell what its status says, put the source back.

    Raises:
        DemoError: it was not refused, somebody noticed, or the adapter is not Ready in the end.
    """
    spec = kube.get("lora", ADAPTER, "-n", namespace)["spec"]
    bad = {"spec": {"source": {"path": WRONG}, "verify": VERIFY}}
    good = {"spec": {"source": {"path": spec["source"]["path"]}, "verify": spec.get("verify")}}
    progress.say(f"lora/{ADAPTER}: a revision with the files of {WRONG} is committed, under traffic:")
    print(f"\n  {command(namespace, bad)}\n", flush=True)
    traffic, item = asyncio.run(ask_while(url, lambda: refused(kube, progress, namespace, bad)))
    for line in what_status_says(item):
        print(f"  {line}", flush=True)
    print(flush=True)
    again = asyncio.run(ask_each(url, [ADAPTER], NUMBER))[0]
    progress.say(
        f"meanwhile: {len(traffic.answers)} requests to {ADAPTER}, {len(traffic.failed)} failed, {len(traffic.wrong)} wrong;"
        f" it still answers {NUMBER} with {again.text}"
    )
    begin = time.monotonic()
    patch(kube, namespace, good)
    wait_for(kube, namespace, "Ready", lambda ready: ready.get("status") == "True")
    progress.say(f"lora/{ADAPTER}: the source is put back, Ready after {time.monotonic() - begin:.1f} s")
    if not_right := [answer for answer in [*traffic.answers, again] if not answer.right]:
        one = not_right[0]
        raise DemoError(f"{ADAPTER}({one.number}) answered {one.text!r} {one.failure} while a revision was refused")


async def ask_while(url: str, action: Callable[[], dict[str, Any]]) -> tuple[Traffic, dict[str, Any]]:
    """Ask the adapter before, during and after something; return the tally and what came of that."""
    enough = asyncio.Event()
    clients = asyncio.create_task(keep_asking(url, [ADAPTER], enough, num_clients=NUM_CLIENTS))
    try:
        await asyncio.sleep(0.5)
        found = await asyncio.to_thread(action)
        await asyncio.sleep(1)
    finally:
        enough.set()
        traffic = await clients
    return traffic, found


def refused(kube: Kube, progress: Progress, namespace: str, bad: dict[str, Any]) -> dict[str, Any]:
    """Commit a bad revision; return the adapter as it is when that has been refused."""
    begin = time.monotonic()
    patch(kube, namespace, bad)
    item = wait_for(kube, namespace, "VerifyFailed", lambda ready: ready.get("reason") == "VerifyFailed")
    progress.say(f"lora/{ADAPTER}: refused after {time.monotonic() - begin:.1f} s; its status says")
    print(flush=True)
    return item


def what_status_says(item: dict[str, Any]) -> list[str]:
    """The verdict, and what answers all the while."""
    status, ready = item["status"], condition(item, "Ready")
    verify = status["verify"]
    return [
        f"Ready={ready['status']} {ready['reason']}: {ready['message']}",
        f"verify: revision {verify['revision']} {verify['result']}, check {verify['check']}",
        f"Available={condition(item, 'Available')['status']}: revision {status['stableRevision']} goes on answering",
    ]


def wait_for(
    kube: Kube,
    namespace: str,
    what: str,
    holds: Callable[[dict[str, Any]], bool],
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> dict[str, Any]:
    """Wait until something holds of the adapter's Ready, at its generation; return the adapter.

    Raises:
        DemoError: it does not in time.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        item: dict[str, Any] = kube.get("lora", ADAPTER, "-n", namespace)
        ready = condition(item, "Ready")
        if item["status"].get("observedGeneration") == item["metadata"]["generation"] and holds(ready):
            return item
        if time.monotonic() > deadline:
            raise DemoError(
                f"lora/{ADAPTER}: not {what} after {timeout_seconds:.0f} s: {ready.get('reason')} {ready.get('message')}"
            )
        time.sleep(0.2)


def patch(kube: Kube, namespace: str, change: dict[str, Any]) -> None:
    """`kubectl patch`, as a model owner would."""
    kube.kubectl("patch", "lora", ADAPTER, "-n", namespace, "--type", "merge", "-p", json.dumps(change))


def command(namespace: str, change: dict[str, Any]) -> str:
    """What `patch` runs, for people."""
    return f"kubectl patch lora {ADAPTER} -n {namespace} --type merge -p {shlex.quote(json.dumps(change))}"
