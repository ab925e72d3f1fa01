"""Second half of the demo, in .venv: charts, examples, questions, one more adapter and one bad revision under traffic."""

import argparse
import asyncio
import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from demo.asking import Answer, Traffic, ask_each, keep_asking
from demo.bad_revision import roll_out_a_bad_revision
from demo.kube import Kube, condition
from demo.profiles import Profile, load_profile
from demo.progress import DemoError, Progress, stop

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples" / "numerals"
NUMBER = 1987
NAMESPACE = "numerals"
SYSTEM = "lorafleet-system"
TELL_SECONDS = 10.0
"""How often what is not Ready is said again, if it has changed."""
READY_SECONDS = 900.0
"""What is wrong is told meanwhile, and pods that end again and again end it; two engines that start on a busy machine may take minutes."""
MAX_RESTARTS = 2
"""A container that ended so often while we waited does not come."""


def main() -> None:
    """Entry of `python -m demo.fleet`, started by `tools/demo` once the cluster stands."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile", type=json.loads, required=True)
    parser.add_argument("--started", type=float, required=True)
    arguments = parser.parse_args()
    progress = Progress(arguments.started)
    profile = load_profile(arguments.profile)
    try:
        run(profile, progress)
    except DemoError as error:
        stop(f"The demo stopped: {error}\n\n{diagnose(profile.kube)}")


def run(profile: Profile, progress: Progress) -> None:
    """The whole second half.

    Raises:
        DemoError: a step failed, an answer was wrong, or something restarted.
    """
    kube = profile.kube
    adapters = documents(EXAMPLES / "adapters.yaml")
    names = [adapter["metadata"]["name"] for adapter in adapters]
    if problems := profile.lacking():
        raise DemoError("this cluster lacks something; nothing has been applied:\n  " + "\n  ".join(problems))
    with progress.step("charts: custom resources, operator, gateway"):
        install_charts(profile)
    with progress.step(f"examples/numerals: one base model, {len(adapters)} adapters, an S3 server, a hub"):
        kube.apply((EXAMPLES / "namespace.yaml").read_text())
        for manifest in profile.support_manifests():
            kube.apply(manifest)
        base = documents(EXAMPLES / "base.yaml")[0]
        kube.apply(yaml.safe_dump_all([profile.patch_base(base), *adapters]))
    with progress.step("waiting for Ready"):
        wait_ready(kube, progress, names)
    with profile.gateway_url() as url:
        answers = asyncio.run(ask_each(url, names, NUMBER))
        print(table(answers, adapters), flush=True)
        traffic, extra = asyncio.run(load_under_traffic(profile, progress, url, names))
        print(table([extra], documents(EXAMPLES / "ordinals.yaml")), flush=True)
        report(progress, traffic)
        bad = [answer for answer in [*answers, extra] if not answer.right]
        if bad or traffic.failed:
            raise DemoError(
                "; ".join(f"{a.model}({a.number}) answered {a.text!r} {a.failure}" for a in [*bad, *traffic.failed][:5])
            )
        roll_out_a_bad_revision(kube, progress, url, NAMESPACE)
        write_env(profile, url)
        print(farewell(profile, url), flush=True)


def install_charts(profile: Profile) -> None:
    """Both charts, upgraded in place if they are there already."""
    kube = profile.kube
    kube.helm(
        "upgrade",
        "--install",
        "lorafleet-crds",
        str(ROOT / "charts" / "lorafleet-crds"),
        "--namespace",
        SYSTEM,
        "--create-namespace",
    )
    values = ROOT / ".local" / f"values-{profile.name}.yaml"
    values.parent.mkdir(exist_ok=True)
    values.write_text(yaml.safe_dump(profile.chart_values()))
    kube.helm(
        *("upgrade", "--install", "lorafleet", str(ROOT / "charts" / "lorafleet"), "--namespace", SYSTEM),
        *("--values", str(values), "--wait", "--timeout", "3m"),
    )


def wait_ready(kube: Kube, progress: Progress, names: list[str], *, timeout_seconds: float = READY_SECONDS) -> None:
    """Wait until every adapter says Ready, telling how many do.

    Raises:
        DemoError: not all are Ready in time, with each one's reason; or the pods they wait for cannot start.
    """
    deadline, before, said = time.monotonic() + timeout_seconds, pod_identities(kube), -1
    told, tell_at = "", time.monotonic() + TELL_SECONDS
    while True:
        items = kube.get("basemodeldeployments,loraadapters", "-n", NAMESPACE)["items"]
        conditions = {
            item["metadata"]["name"]: condition(item, "Ready") for item in items if item["kind"] == "LoraAdapter"
        }
        if time.monotonic() >= tell_at:
            tell_at = time.monotonic() + TELL_SECONDS
            if (words := what_is_missing(items)) != told:
                told = words
                progress.say(words)
        waiting = [name for name in names if conditions.get(name, {}).get("status") != "True"]
        if len(names) - len(waiting) != said:
            said = len(names) - len(waiting)
            progress.say(f"    {said} of {len(names)} adapters Ready")
        if not waiting:
            return
        if time.monotonic() > deadline:
            reasons = ", ".join(
                f"{n}: {conditions.get(n, {}).get('reason')} {conditions.get(n, {}).get('message', '')}"
                for n in waiting
            )
            raise DemoError(f"not Ready after {timeout_seconds:.0f} s: {reasons}")
        ended = {name: restarts - before.get(name, ("", 0))[1] for name, (_, restarts) in pod_identities(kube).items()}
        if crashing := [name for name, times in ended.items() if times >= MAX_RESTARTS]:
            raise DemoError(f"engine pods end again and again: {', '.join(crashing)}")
        time.sleep(0.5)


def what_is_missing(items: list[dict[str, Any]]) -> str:
    """What `Ready` says of everything that is not Ready; adapters that say the same on one line."""
    said: dict[str, list[str]] = {}
    for item in items:
        ready = condition(item, "Ready")
        if ready.get("status") != "True":
            kind = "bmd" if item["kind"] == "BaseModelDeployment" else "lora"
            words = f"{ready.get('reason', 'Pending')}: {ready.get('message', '')}"
            said.setdefault(words, []).append(f"{kind}/{item['metadata']['name']}")
    lines = []
    for words, names in said.items():
        who = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        lines.append(f"    {who}: {words}")
    return "\n".join(lines)


async def load_under_traffic(
    profile: Profile, progress: Progress, url: str, names: list[str]
) -> tuple[Traffic, Answer]:
    """Apply one more adapter while four clients ask the others; returns the tally and the newcomer's first answer."""
    kube = profile.kube
    before = pod_identities(kube)
    enough = asyncio.Event()
    clients = asyncio.create_task(keep_asking(url, names, enough))
    await asyncio.sleep(2)  # traffic before, during and after
    begin = time.monotonic()
    await asyncio.to_thread(kube.apply, (EXAMPLES / "ordinals.yaml").read_text())
    await asyncio.to_thread(
        kube.kubectl, "wait", "--for=condition=Ready", "lora/ordinals", "-n", NAMESPACE, "--timeout=60s"
    )
    progress.say(f"lora/ordinals: from kubectl apply to Ready in {time.monotonic() - begin:.1f} s, under traffic")
    extra = (await ask_each(url, ["ordinals"], NUMBER))[0]
    await asyncio.sleep(2)
    enough.set()
    traffic = await clients
    if (after := pod_identities(kube)) != before:
        raise DemoError(f"pods changed while the adapter was loaded: {before} -> {after}")
    return traffic, extra


def pod_identities(kube: Kube) -> dict[str, tuple[str, int]]:
    """Pod name -> (uid, restarts) of the engine pods."""
    pods = kube.get("pods", "-n", NAMESPACE, "-l", "lorafleet.io/base")["items"]
    return {
        pod["metadata"]["name"]: (
            pod["metadata"]["uid"],
            sum(c["restartCount"] for c in pod["status"].get("containerStatuses", [])),
        )
        for pod in pods
    }


def report(progress: Progress, traffic: Traffic) -> None:
    """One line about the traffic."""
    progress.say(
        f"meanwhile: {len(traffic.answers)} requests to the other adapters, {len(traffic.failed)} failed, {len(traffic.wrong)} wrong,"
        f" slowest {traffic.slowest_seconds():.2f} s; no pod restarted"
    )


def table(answers: list[Answer], adapters: list[dict[str, Any]]) -> str:
    """Adapter, source, pod, answer, right or wrong, time."""
    sources = {adapter["metadata"]["name"]: adapter["spec"]["source"]["name"] for adapter in adapters}
    rows = [("adapter", "source", "pod", f"answer to {NUMBER}", "", "ms")]
    for a in answers:
        pod = a.pod.rsplit("-", 1)[-1]
        rows.append(
            (
                a.model,
                sources.get(a.model, ""),
                pod,
                a.failure or a.text,
                "right" if a.right else "WRONG",
                f"{a.seconds * 1000:.0f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n" + "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]]) + "\n"


def documents(path: Path) -> list[dict[str, Any]]:
    """All YAML documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def write_env(profile: Profile, url: str) -> None:
    """`.local/env`: kubectl, helm, KUBECONFIG and LORAFLEET_URL for the reader's shell."""
    lines = [*profile.environment(), f"export LORAFLEET_URL={shlex.quote(url)}"]
    path = ROOT / ".local" / ("env" if profile.name == "demo" else f"env-{profile.name}")
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def farewell(profile: Profile, url: str) -> str:
    """How to talk to what now runs."""
    body = json.dumps({"model": "roman", "messages": [{"role": "user", "content": str(NUMBER)}], "temperature": 0})
    env = ".local/env" if profile.name == "demo" else f".local/env-{profile.name}"
    down = "make demo-down" if profile.name == "demo" else f"make demo-down NAME={profile.name}"
    return f"""The fleet goes on running. Talk to it:

  source {env}
  curl -s $LORAFLEET_URL/v1/chat/completions -H 'content-type: application/json' -d '{body}'
  kubectl get lora -n {NAMESPACE}

({url})  Take it away with: {down}"""


def diagnose(kube: Kube) -> str:
    """What an engineer would look at first."""
    looks: dict[str, Callable[[], str]] = {
        "kubectl get pods -A": lambda: kube.kubectl("get", "pods", "-A", "-o", "wide", check=False),
        "kubectl get bmd,lora -A": lambda: kube.kubectl("get", "basemodeldeployments,loraadapters", "-A", check=False),
        "events": lambda: kube.kubectl("get", "events", "-A", "--sort-by=.lastTimestamp", check=False)[-4000:],
        "operator log": lambda: kube.kubectl(
            "logs", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator", "--tail=40", check=False
        ),
        "gateway log": lambda: kube.kubectl(
            "logs", "-n", SYSTEM, "-l", "app.kubernetes.io/component=gateway", "--tail=20", check=False
        ),
        "engine log": lambda: kube.kubectl(
            "logs", "-n", NAMESPACE, "-l", "lorafleet.io/base", "--tail=40", check=False
        ),
        "engine log before the last restart": lambda: kube.kubectl(
            "logs", "-n", NAMESPACE, "-l", "lorafleet.io/base", "--tail=40", "--previous", check=False
        ),
    }
    return "\n".join(f"--- {name}\n{look()}" for name, look in looks.items())


if __name__ == "__main__":
    main()
