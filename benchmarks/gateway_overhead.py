"""What the gateway adds: `python benchmarks/gateway_overhead.py` sends the same requests to a trivial pod directly and through it.

Everything runs on this machine: the pod is a bare asyncio protocol that answers at once with a fixed body, the gateway is a process as in
a cluster, this process sends. Reported are medians over rounds that take turns, so that a busy machine disturbs both ways alike.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "contract" / "src"), str(ROOT / "common" / "src")]

from support.kube_api import kube_double  # noqa: E402

from lorafleet_contract.names import LABEL_BASE, LABEL_ROLE  # noqa: E402

BODY = json.dumps({"model": "french", "messages": [{"role": "user", "content": "x" * 500}], "temperature": 0}).encode()
ANSWER = json.dumps(
    {"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": "y" * 200}}]}
).encode()
EVENT = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"token"}}]}\n\n'
NUM_EVENTS = 50
REVISION = "aaaaaaaaaaaa"
ROUTES = {
    "bootId": "b", "generation": 1, "base": "numerals", "ready": True, "draining": False, "maxModelLen": 512,
    "adapters": [{"name": "french", "revision": REVISION, "stable": True, "tier": "Device"}],
}  # fmt: skip


class TrivialPod(asyncio.Protocol):
    """Answers each request as soon as it is whole."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end]
            size = content_length(head)
            if len(self.received) < end + 4 + size:
                return
            self.received = self.received[end + 4 + size :]
            self.answer(head)

    def answer(self, head: bytes) -> None:
        if head.startswith(b"GET"):
            write_json(self.transport, json.dumps(ROUTES).encode())
        elif b"x-stream" in head:
            asyncio.get_running_loop().create_task(self.stream())
        else:
            write_json(self.transport, ANSWER)

    async def stream(self) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(NUM_EVENTS):
            self.transport.write(b"%x\r\n%s\r\n" % (len(EVENT), EVENT))
            await asyncio.sleep(0)
        self.transport.write(b"0\r\n\r\n")


def write_json(transport: asyncio.BaseTransport, body: bytes) -> None:
    transport.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    )


def content_length(head: bytes) -> int:
    lower = head.lower()
    at = lower.find(b"content-length:")
    return int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


@dataclass
class Load:
    port: int
    num_connections: int
    stream: bool

    async def run(self, num_requests: int) -> tuple[float, list[float]]:
        """Return requests a second and the latencies."""
        latencies: list[float] = []
        began = time.perf_counter()
        await asyncio.gather(
            *(self.client(num_requests // self.num_connections, latencies) for _ in range(self.num_connections))
        )
        return len(latencies) / (time.perf_counter() - began), latencies

    async def client(self, num_requests: int, latencies: list[float]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        extra = b"x-stream: 1\r\n" if self.stream else b""
        request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\naccept: */*\r\n"
        )
        request += b"user-agent: bench\r\n" + extra + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
        for _ in range(num_requests):
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head[:16], head
            if size := content_length(head):
                await reader.readexactly(size)
            else:
                await reader.readuntil(b"0\r\n\r\n")
            latencies.append(time.perf_counter() - began)
        writer.close()


@contextlib.asynccontextmanager
async def gateway(pod_port: int, level: str) -> AsyncIterator[tuple[int, int]]:
    """Run one; yields its port and its process id."""
    async with kube_double() as kube:
        kube.put("basemodeldeployments", "n", "numerals", spec={}, status={"servedName": "numerals"})
        adapter = {"baseModelRef": {"name": "numerals"}, "source": {"name": "m", "path": "french"}}
        kube.put(
            "loraadapters", "n", "french", spec=adapter, status={"servedName": "french", "stableRevision": REVISION}
        )
        endpoint = {
            "addresses": ["127.0.0.1"],
            "conditions": {"ready": True},
            "targetRef": {"kind": "Pod", "name": "p", "uid": "u"},
        }
        kube.put(
            "endpointslices", "n", "s", labels={LABEL_BASE: "numerals", LABEL_ROLE: "pods"}, addressType="IPv4",
            endpoints=[endpoint], ports=[{"name": "http", "port": pod_port}],
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            kubeconfig = Path(folder) / "config"
            cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{kube.port}"}}
            context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
            users = [{"name": "u", "user": {}}]
            kubeconfig.write_text(
                json.dumps({"clusters": [cluster], "contexts": [context], "users": users, "current-context": "x"})
            )
            path = ":".join(str(ROOT / part / "src") for part in ("contract", "common", "gateway"))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "lorafleet_gateway", "serve", "--host", "127.0.0.1", "--port", str(port), "--log-level", level,
                "--metrics-port", "0",
                env={**os.environ, "PYTHONPATH": path, "KUBECONFIG": str(kubeconfig)}, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            try:
                await until_ready(port)
                yield port, process.pid
            finally:
                process.kill()
                await process.wait()


async def until_ready(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /ready HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n")
                is_ready = b" 200 " in (await reader.read())[:16]
                writer.close()
                if is_ready:
                    return
            await asyncio.sleep(0.1)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=2000, help="a round and way")
    parser.add_argument("--log-level", default="info")
    arguments = parser.parse_args()
    server = await asyncio.get_running_loop().create_server(TrivialPod, "127.0.0.1", 0)
    pod_port = server.sockets[0].getsockname()[1]
    print(
        "| requests | connections | direct p50 ms | gateway p50 ms | added p50 ms | gateway p99 ms | gateway answers/s | CPU µs each |"
    )
    print("|---|---|---|---|---|---|---|---|")
    async with gateway(pod_port, arguments.log_level) as (port, pid):
        for stream, num_connections in ((False, 1), (False, 16), (False, 64), (True, 1), (True, 16)):
            num_requests = arguments.requests // (8 if stream else 1)
            direct, through = Load(pod_port, num_connections, stream), Load(port, num_connections, stream)
            await through.run(num_requests // 4)
            rows: list[tuple[float, float, float, float, float]] = []
            for _ in range(arguments.rounds):
                _, direct_latencies = await direct.run(num_requests)
                before = cpu_seconds(pid)
                rate, latencies = await through.run(num_requests)
                cpu = (cpu_seconds(pid) - before) / len(latencies) * 1e6
                p99 = sorted(latencies)[int(len(latencies) * 0.99)]
                rows.append((statistics.median(direct_latencies), statistics.median(latencies), p99, rate, cpu))
            base, p50, p99, rate, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
            what = f"stream of {NUM_EVENTS} events" if stream else "answer"
            print(
                f"| {what} | {num_connections} | {base * 1e3:.2f} | {p50 * 1e3:.2f} | {(p50 - base) * 1e3:.2f} | {p99 * 1e3:.2f} "
                f"| {rate:.0f} | {cpu:.0f} |",
                flush=True,
            )
        print(f"\nresident memory of the gateway: {resident_mib(pid):.0f} MiB")
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
