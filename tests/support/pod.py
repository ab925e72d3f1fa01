"""A real pod: `lorafleet-inference serve` on free ports of the loopback, in processes that are forked from a server which has
imported what they need (`forked=False`: the program itself, which takes ten seconds of a core longer)."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from openai import AsyncOpenAI, OpenAI
from support.cpu_kernels import compiled
from support.forked import ForkedProcess, fork, run_forked
from support.forked_programs import ENGINE_NAME
from support.processes import descendants

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [str(ROOT / part / "src") for part in ("contract", "common", "inference")]
START_SECONDS = 300.0
END_SECONDS = 120.0
"""Compiled once for all pods of all runs."""
LISTENING = re.compile(r"listening on (http://\S+) \(admin (http://\S+)\)")
NUMERALS = ROOT / "models" / "numerals"
NUMERALS_ADAPTERS = ROOT / "models" / "numerals-adapters"


@dataclass
class ServedPod:
    """A running pod. `url` is its public port, `admin_url` its admin port (loopback, no token unless given one)."""

    process: subprocess.Popen[bytes] | ForkedProcess
    log_file: Path
    url: str = ""
    admin_url: str = ""

    @property
    def logs(self) -> str:
        """What the process has written so far."""
        return self.log_file.read_text(errors="replace")

    def openai(self) -> OpenAI:
        """A client that does not try again."""
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=180)

    def async_openai(self) -> AsyncOpenAI:
        """As `openai`."""
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=180)

    def get(self, path: str) -> httpx.Response:
        """GET on the public port."""
        return httpx.get(f"{self.url}{path}", timeout=60, trust_env=False)

    def metric(self, series: str) -> float:
        """The value of one series of /metrics, written as there; 0 where it is not there."""
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(f"{series} "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def metric_of_adapter(self, series: str, adapter: str) -> float:
        """As `metric`, of a series with `{adapter}` in it; a pod that knew many adapters counts later ones as `_other`."""
        return sum(self.metric(series.replace("{adapter}", name)) for name in (adapter, "_other"))

    def wait_for(self, path: str, status: int, *, timeout_seconds: float = START_SECONDS) -> httpx.Response:
        """Wait until GET answers with a status."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            answer = self.get(path)
            if answer.status_code == status:
                return answer
            assert time.monotonic() < deadline, f"{path} still answers {answer.status_code}: {answer.text}\n{self.logs}"
            assert self.process.poll() is None, f"the pod ended with {self.process.returncode}\n{self.logs}"
            time.sleep(0.02)

    @contextmanager
    def stopped_engine(self) -> Iterator[None]:
        """Inside, the engine stands still, so that what runs does not end; the API process goes on."""
        engines = [pid for pid in descendants(self.process.pid) if is_engine(pid)]
        assert engines
        for pid in engines:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in engines:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def wait_ended(self, timeout_seconds: float = END_SECONDS) -> int:
        """Wait for the end of the process and return its status."""
        return self.process.wait(timeout_seconds)


def command_of(process_id: int) -> bytes:
    """Command line of a process; nothing of one that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{process_id}/cmdline").read_bytes()
    return b""


def is_engine(process_id: int) -> bool:
    """Whether it runs an engine, as a program or forked."""
    name = b""
    with suppress(OSError):
        name = Path(f"/proc/{process_id}/comm").read_bytes().strip()
    return name == ENGINE_NAME or b"engine.process" in command_of(process_id)


@contextmanager
def start(*options: str, env: Mapping[str, str] | None = None, forked: bool = True) -> Iterator[ServedPod]:
    """Run `serve` with these options; ends with it, and shows its log if the test failed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LORAFLEET_")}
    defaults = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(SOURCES), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory(prefix="lorafleet-pod-") as folder:
        log_file = Path(folder) / "log"
        command = [sys.executable, "-m", "lorafleet_inference", "serve", *options]
        with log_file.open("wb") as log:
            process = _started(command, log.fileno(), {**clean, **defaults, **(env or {})}, forked=forked)
        pod = ServedPod(process, log_file)
        try:
            yield pod
        except BaseException:
            print(f"--- log of the pod ({' '.join(command)})\n{pod.logs}\n---", file=sys.stderr)
            raise
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(END_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _started(
    command: Sequence[str], log: int, env: Mapping[str, str], *, forked: bool
) -> subprocess.Popen[bytes] | ForkedProcess:
    if not forked:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
    return fork("support.forked_programs:pod", command[3:], output=log, errors=log, environment=env)


@contextmanager
def serve(
    model: Path,
    *options: str,
    adapters: Mapping[str, Path | str] | None = None,
    env: Mapping[str, str] | None = None,
    wait_ready: bool = True,
    forked: bool = True,
) -> Iterator[ServedPod]:
    """Serve a model with adapters, small budgets and no grace at the end; yields when it listens, or is ready."""
    with tempfile.TemporaryDirectory(prefix="lorafleet-cache-") as cache:
        (Path(cache) / "kernels").symlink_to(compiled())
        given = [f"--adapter={name}={source}" for name, source in (adapters or {}).items()]
        small = ["--kv-cache-memory=64Mi", "--host-cache=256Mi", "--num-threads=1", "--dtype=float32"]
        own = [f"--model={model}", "--host=127.0.0.1", "--port=0", "--admin-port=0", f"--cache-dir={cache}"]
        with start(*own, *small, "--drain-grace-seconds=0", *given, *options, env=env, forked=forked) as pod:
            wait_listening(pod)
            if wait_ready:
                pod.wait_for("/ready", 200)
            yield pod


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `lorafleet-inference ARGUMENTS` in a forked process to its end."""
    return run_forked("support.forked_programs:pod", *arguments)


def wait_listening(pod: ServedPod) -> None:
    """Wait until its ports are open, and set its addresses."""
    deadline = time.monotonic() + START_SECONDS
    while (found := LISTENING.search(pod.logs)) is None:
        assert pod.process.poll() is None, f"the pod ended with {pod.process.returncode}\n{pod.logs}"
        assert time.monotonic() < deadline, f"the pod does not listen\n{pod.logs}"
        time.sleep(0.02)
    pod.url, pod.admin_url = found[1], found[2]
