"""A run: what the operator and a gateway cost and how far behind they are, with so many pods and adapters."""

import asyncio
import contextlib
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import load_kube_config
from scale.api_server import ApiServer, free_port, running, serve_api
from scale.world import BASE, BASES, NAMESPACE, ROOT, SYSTEM, Watched, World, content_revision, series, together

from lorafleet_common.kube.client import KubeApi

PACKAGES = ("contract", "common", "operator", "gateway")
QUIET_SECONDS = 8.0
"""Without a status write: whatever was under way is over. A revision that is no longer stable leaves after 6 s."""
GATEWAY_POLL_SECONDS = 0.02
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured."""

    num_pods: int = 50
    num_adapters: int = 1000
    num_changes: int = 100
    churn_seconds: float = 40.0
    churn_per_second: float = 5.0
    steady_seconds: float = 45.0
    rolls: bool = True
    roll_pause_seconds: float = 0.0
    """Between two pods of the rolling update."""
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Program:
    """A process of ours that is measured."""

    pid: int
    metrics_url: str
    log: Path

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)

    def memory_mib(self, field: str = "VmRSS") -> float:
        """Resident memory; with `VmHWM` the most that it was."""
        found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return round(int(found[1]) / 1024, 1)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Run:
    """One run over one API server; its phases follow each other."""

    def __init__(
        self,
        sizes: Sizes,
        server: ApiServer,
        folder: Path,
        say: Callable[[str], None],
        keep: Callable[[Json], None] = lambda _: None,
    ) -> None:
        """`keep` is given the results so far after each phase."""
        self.sizes = sizes
        self.result: Json = {"sizes": asdict(sizes)}
        self._server = server
        self._folder = folder
        self._say = say
        self._keep = keep
        self._random = random.Random(sizes.seed)
        self._versions: dict[str, int] = {}
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("LORAFLEET_", "PYTHON"))},
            # as in an image programs find themselves compiled, from the second start on
            "PYTHONPYCACHEPREFIX": str(folder / "pycache"),
            "KUBECONFIG": str(server.kubeconfig),
            "PYTHONPATH": os.pathsep.join([*(str(ROOT / one / "src") for one in PACKAGES), str(ROOT / "tests")]),
        }

    async def all(self) -> Json:
        """Run all phases and return the results."""
        configuration = Configuration()
        await load_kube_config(config_file=str(self._server.kubeconfig), client_configuration=configuration)
        self.api = KubeApi(configuration)
        async with aiohttp.ClientSession() as self._session:
            control = free_port()
            with self._program("pods", "scale.pods", "--control-port", str(control), metrics=control) as self._pods:
                await self._listens(self._pods, "/pods")
                # in mode All each pod keeps all
                slots = max(64, self.sizes.num_adapters + self.sizes.num_changes)
                self.world = World(self.api, f"http://127.0.0.1:{control}", self._session, slots=slots)
                self.watched = Watched(self.api)
                try:
                    await self._phases()
                finally:
                    await self.api.close()
        return self.result

    async def _phases(self) -> None:
        await self.world.install()
        async with _beside(self.watched.follow(), self.world.run_kubelet()):
            await self._bring_up()
            port, metrics = free_port(), free_port()
            options = ("serve", "--host", "127.0.0.1", "--port", str(port), "--metrics-port", str(metrics))
            with self._program("gateway", "lorafleet_gateway", *options, metrics=metrics) as self._gateway:
                self._gateway_url = f"http://127.0.0.1:{port}"
                await self._create_adapters()
                with self._operator() as self.operator:
                    await self._cold()
                    await self._changes()
                    await self._churn()
                    await self._steady()
                    if self.sizes.rolls:
                        await self._roll()

    async def _bring_up(self) -> None:
        self._say("the base and its pods come up")
        with self._operator():
            await self.world.create_base(self.sizes.num_pods)
            await self.world.start_pods(self.sizes.num_pods)
            await self._until(self._base_is_ready, "the base is Ready", 120)

    async def _base_is_ready(self) -> bool:
        body = await self.api.get(f"{BASES}/{BASE}")
        conditions = {c["type"]: c["status"] for c in (body.get("status") or {}).get("conditions") or []}
        return conditions.get("Ready") == "True"

    async def _create_adapters(self) -> None:
        self._names = [f"adapter-{number:05}" for number in range(self.sizes.num_adapters)]
        began = time.monotonic()
        await together(self.world.create_adapter(name) for name in self._names)
        self.result["api_server_creates_per_second"] = round(len(self._names) / (time.monotonic() - began), 1)

    async def _cold(self) -> None:
        """The operator finds pods that have nothing, and adapters of which it has never heard."""
        self._say(f"cold convergence of {len(self._names)} adapters on {self.sizes.num_pods} pods")
        began = time.monotonic()
        async with self._phase("cold") as found:
            ended = await self.watched.until(self._all_ready, "all adapters are Ready", 600)
            found["seconds"] = round(ended - began, 2)
            await self._until(self._gateway_has_all, "the gateway has all", 60)
            found["gateway_behind_seconds"] = round(time.monotonic() - ended, 2)
        await self._settle()

    def _all_ready(self) -> bool:
        return all((name, 1) in self.watched.ready for name in self._names)

    async def _gateway_has_all(self) -> bool:
        async with self._session.get(f"{self._gateway_url}/v1/models") as answer:
            return len((await answer.json())["data"]) >= len(self._names) + 1

    async def _changes(self) -> None:
        """One new revision after the other, each when the last one is switched to."""
        self._say(f"{self.sizes.num_changes} single changes")
        start, lags, changes = len(await self.world.taken()), [], []
        async with self._phase("single_changes") as found:
            for name in self._random.sample(self._names, min(self.sizes.num_changes, len(self._names))):
                change = await self._change(name)
                changes.append(change)
                key = (change.name, change.revision)
                seen = asyncio.ensure_future(self._seen_by_gateway(*key))
                await self.watched.until(lambda key=key: key in self.watched.switched, f"{name} is switched", 60)
                lags.append(max(0.0, await seen - self.watched.switched[key]))
            found.update(await self._summary(changes, start))
            found["gateway_behind_seconds"] = quantiles(lags)
        await self._settle()

    async def _seen_by_gateway(self, name: str, revision: str) -> float:
        while True:
            async with self._session.get(f"{self._gateway_url}/v1/models/{name}") as answer:
                if (await answer.json()).get("revision") == revision:
                    return time.monotonic()
            await asyncio.sleep(GATEWAY_POLL_SECONDS)

    async def _change(self, name: str) -> "Change":
        self._versions[name] = self._versions.get(name, 0) + 1
        path = f"{name}-v{self._versions[name]}"
        change = Change(name, content_revision(path), time.monotonic())
        await self.world.change_adapter(name, source={"name": "models", "path": path})
        return change

    async def _churn(self) -> None:
        """So many changes a second: new revisions mostly, of ten one new adapter and one that is deleted."""
        num = round(self.sizes.churn_seconds * self.sizes.churn_per_second)
        self._say(f"churn: {num} changes, {self.sizes.churn_per_second:g} a second")
        start, changes = len(await self.world.taken()), []
        names = self._random.sample(self._names, min(num, len(self._names)))
        async with self._phase("churn") as found:
            began = time.monotonic()
            for number in range(num):
                await asyncio.sleep(max(0.0, began + number / self.sizes.churn_per_second - time.monotonic()))
                name = names[number % len(names)]
                if number % 10 == 8:
                    new = f"new-{number:05}"
                    changes.append(Change(new, content_revision(new), time.monotonic()))
                    await self.world.create_adapter(new)
                elif number % 10 == 9:
                    await self.world.delete_adapter(f"new-{number - 1:05}")
                else:
                    changes.append(await self._change(name))
            last = {change.name: change for change in changes}.values()
            stay = [c for c in last if c.name in self._names]
            await self.watched.until(
                lambda: all((c.name, c.revision) in self.watched.switched for c in stay), "all are switched to", 120
            )
            found.update(await self._summary(changes, start))
        await self._settle()

    async def _summary(self, changes: "Sequence[Change]", start: int) -> Json:
        """How long after its write a change was at the pods that keep the adapter, and at all pods."""
        times: dict[tuple[str, str], dict[str, tuple[float, str]]] = {}
        for at, address, name, revision, residency in await self.world.taken(start):
            times.setdefault((name, revision), {}).setdefault(address, (at, residency))
        told = [(change, times.get((change.name, change.revision), {})) for change in changes]
        kept = [(c, [at for at, residency in found.values() if residency == "Resident"]) for c, found in told]
        switched = [(c, self.watched.switched.get((c.name, c.revision))) for c in changes]
        return {
            "num_changes": len(changes),
            "num_overtaken": sum(not found for _, found in kept),
            "at_its_pods_seconds": quantiles([max(found) - c.at for c, found in kept if found]),
            "at_all_pods_seconds": quantiles(
                [max(at for at, _ in found.values()) - c.at for c, found in told if len(found) >= self.sizes.num_pods]
            ),
            "switched_seconds": quantiles([at - c.at for c, at in switched if at is not None]),
        }

    async def _steady(self) -> None:
        """Nothing changes: what is written and computed all the same."""
        self._say(f"steady state for {self.sizes.steady_seconds:g} s")
        before = await self._api_writes()
        async with self._phase("steady") as found:
            await asyncio.sleep(self.sizes.steady_seconds)
        after = await self._api_writes()
        written = {
            what: int(number - before.get(what, 0)) for what, number in after.items() if number > before.get(what, 0)
        }
        # the operator's Lease, and those of the API server itself
        found["writes"] = {what: number for what, number in written.items() if not what.endswith(" leases")}

    async def _api_writes(self) -> dict[str, float]:
        """Requests to the API server that were no reads, by verb and resource."""
        _, text = await self._text(f"{self._server.url}/metrics", is_api=True)
        found: dict[str, float] = {}
        for labels, number in series(text, "apiserver_request_total").items():
            label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if label["verb"] in ("POST", "PUT", "PATCH", "APPLY", "DELETE") and not label["dry_run"]:
                what = f"{label['verb']} {label['resource']}"
                if label["subresource"]:
                    what = f"{label['verb']} {label['resource']}/{label['subresource']}"
                found[what] = found.get(what, 0) + number
        return found

    async def _roll(self) -> None:
        """Each pod is replaced by a new one that first takes all adapters: mode All."""
        self._say("all adapters on all pods")
        async with self._phase("to_mode_all") as found:
            began = time.monotonic()
            names = list(self.watched.bodies)
            await together(self.world.change_adapter(name, placement={"mode": "All"}) for name in names)
            await self.watched.until(self._all_resident, "all are resident everywhere", 600)
            found["seconds"] = round(time.monotonic() - began, 2)
        await self._settle()
        self._say(f"rolling update of {self.sizes.num_pods} pods")
        old = list(await self.world.pods())
        async with self._phase("rolling_update_in_mode_all") as found:
            began = time.monotonic()
            annotations = {"metadata": {"annotations": {"scale/template": "2"}}}
            await self.world.patch(f"{BASES}/{BASE}", {"spec": {"podTemplate": annotations}})
            await self._until(self._has_new_template, "the operator applied the new template", 60)
            for address in old:
                num = self.world.num_ready
                await self.world.start_pods(1)
                await self._until_ready(num + 1)
                await self.world.stop_pod(address)
                await asyncio.sleep(self.sizes.roll_pause_seconds)
            await self.watched.until(self._all_resident, "all are resident everywhere", 600)
            await self._settle()
            found["seconds"] = round(time.monotonic() - began, 2)
        found["status_writes_per_adapter"] = round(found["status_writes"] / len(self.watched.bodies), 2)

    async def _has_new_template(self) -> bool:
        body = await self.api.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{BASE}")
        return bool(body["spec"]["template"]["metadata"]["annotations"].get("scale/template") == "2")

    async def _until_ready(self, num: int) -> None:
        async def holds() -> bool:
            return self.world.num_ready >= num

        await self._until(holds, f"{num} pods are ready", 120)

    def _all_resident(self) -> bool:
        num = self.sizes.num_pods
        return all(
            (b.get("status") or {}).get("replicas") == {"desired": num, "resident": num}
            for b in self.watched.bodies.values()
        )

    async def _settle(self) -> None:
        """Wait until no status has been written for a while."""
        quiet_since, known = time.monotonic(), self.watched.num_events
        while time.monotonic() - quiet_since < QUIET_SECONDS:
            await asyncio.sleep(0.2)
            if self.watched.num_events != known:
                quiet_since, known = time.monotonic(), self.watched.num_events

    @asynccontextmanager
    async def _phase(self, name: str) -> AsyncIterator[Json]:
        """Measure what a phase costs: passes, writes, time of processors, memory."""
        found: Json = self.result.setdefault(name, {})
        before, cpu, began = await self._scraped(), self._cpu(), time.monotonic()
        yield found
        wall, after = time.monotonic() - began, await self._scraped()
        used = {name: round(now - cpu[name], 2) for name, now in self._cpu().items()}
        passes = {key: after[key] - before[key] for key in after}
        found["wall_seconds"] = round(wall, 2)
        found["cpu_cores"] = {name: round(seconds / wall, 3) for name, seconds in used.items()}
        found["status_writes"] = int(passes.pop("status_writes"))
        found["catalogue_writes"] = int(passes.pop("catalogue_writes"))
        num, total = passes.pop("count"), passes.pop("sum")
        slow = num - passes["0.3"]
        found["passes"] = {
            "num": int(num),
            "mean_seconds": round(total / num, 4) if num else None,
            "above_0.3": int(slow),
        }
        found["operator_memory_mib"] = self.operator.memory_mib()
        found["gateway_memory_mib"] = self._gateway.memory_mib()
        self.result["memory_mib"] = {
            name: {"at_end": one.memory_mib(), "highest": one.memory_mib("VmHWM")}
            for name, one in (("operator", self.operator), ("gateway", self._gateway))
        }
        self._say(f"  {name}: {found}")
        self._keep(self.result)

    def _cpu(self) -> dict[str, float]:
        pids = {
            "operator": self.operator.pid,
            "gateway": self._gateway.pid,
            "pods": self._pods.pid,
            "api_server": self._server.pid,
            "etcd": self._server.etcd_pid,
            "harness": os.getpid(),
        }
        return {name: cpu_seconds(pid) for name, pid in pids.items()}

    async def _scraped(self) -> dict[str, float]:
        try:
            _, text = await self._text(self.operator.metrics_url + "/metrics")
        except aiohttp.ClientError:  # it has just been started
            text = ""
        name = "lorafleet_operator_reconcile_seconds"
        buckets = {
            edge.partition('le="')[2].rstrip('"'): number for edge, number in series(text, f"{name}_bucket").items()
        }
        return {
            "status_writes": sum(series(text, "lorafleet_operator_status_writes_total").values()),
            "catalogue_writes": sum(series(text, "lorafleet_operator_catalogue_writes_total").values()),
            "count": sum(series(text, f"{name}_count").values()),
            "sum": sum(series(text, f"{name}_sum").values()),
            "0.3": buckets.get("0.3", 0.0),
        }

    async def _text(self, url: str, *, is_api: bool = False) -> tuple[int, str]:
        headers, context = {}, None
        if is_api:
            import json
            import ssl

            config = json.loads(self._server.kubeconfig.read_text())
            headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}"}
            context = ssl.create_default_context(cafile=config["clusters"][0]["cluster"]["certificate-authority"])
        async with self._session.get(url, headers=headers, ssl=context or True) as answer:
            return answer.status, await answer.text()

    @contextmanager
    def _operator(self) -> Iterator[Program]:
        port = free_port()
        options = (
            "run",
            "--engine-image",
            "none",
            "--namespace",
            SYSTEM,
            "--pod-name",
            "scale",
            "--http-port",
            str(port),
        )
        with self._program("operator", "lorafleet_operator", *options, metrics=port) as program:
            yield program

    @contextmanager
    def _program(self, name: str, module: str, *options: str, metrics: int) -> Iterator[Program]:
        log = self._folder / f"{name}.log"
        profiler = self._environment.get("SCALE_PROFILE") == name
        way = ["-m", "cProfile", "-o", f"/tmp/{name}.prof", "-m"] if profiler else ["-m"]
        with running(log, sys.executable, *way, module, *options, environment=self._environment) as process:
            try:
                yield Program(process.pid, f"http://127.0.0.1:{metrics}", log)
                assert process.poll() is None, f"{name} ended"
            except BaseException:
                self._say(f"the end of {name}'s log:\n{log.read_text()[-3000:]}")
                raise

    async def _listens(self, program: Program, path: str) -> None:
        async def holds() -> bool:
            try:
                return (await self._text(program.metrics_url + path))[0] == 200
            except aiohttp.ClientError:
                return False

        await self._until(holds, f"{program.metrics_url} answers", 60)

    async def _until(self, holds: Any, what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not await holds():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            await asyncio.sleep(0.05)


@dataclass(frozen=True, slots=True)
class Change:
    """A write of the harness's: from then on `name` should be `revision`."""

    name: str
    revision: str
    at: float
    """Monotonic seconds."""


def quantiles(values: Sequence[float]) -> Json:
    """Return median, p99 and the highest of some seconds."""
    if not values:
        return {"num": 0}
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {
        "num": len(ordered),
        "median": round(statistics.median(ordered), 3),
        "p99": round(p99, 3),
        "highest": round(ordered[-1], 3),
    }


@asynccontextmanager
async def _beside(*coroutines: Any) -> AsyncIterator[None]:
    """Run things beside what is inside; one that fails is raised at the end."""
    tasks = [asyncio.ensure_future(one) for one in coroutines]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


def measure(
    sizes: Sizes, say: Callable[[str], None], keep: Callable[[Json], None] = lambda _: None, *, logs: Path | None = None
) -> Json:
    """Run an API server and all phases over it; `keep` is given the results so far after each, `logs` the programs' logs."""
    with tempfile.TemporaryDirectory(prefix="lorafleet-scale-logs-") as name, serve_api() as server:
        folder = logs or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        return asyncio.run(Run(sizes, server, folder, say, keep).all())
