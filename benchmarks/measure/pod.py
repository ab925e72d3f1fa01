"""A pod to measure: `lorafleet-inference serve` as a process of its own."""

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from measure.memory import peak_bytes

LISTENING = re.compile(r"listening on (http://\S+) \(admin (http://\S+)\)")
START_SECONDS = 600.0
POLL_SECONDS = 0.05
KERNELS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafleet" / "benchmarks" / "kernels"
"""Of the CPU, compiled by the first pod: that is before a pod is ready, and nothing of it is measured."""


@dataclass(slots=True)
class MeasuredPod:
    """A pod that is ready. `base` is the name of its base model."""

    url: str
    admin_url: str
    base: str
    process: subprocess.Popen[bytes]

    def peak_bytes(self) -> int:
        """Return the largest memory so far of the API process and the engine together."""
        return peak_bytes(self.process.pid)


@contextmanager
def serve(model: Path, adapters: Mapping[str, Path], options: Sequence[str]) -> Iterator[MeasuredPod]:
    """Run a pod with these adapters and yield it when it is ready.

    Raises:
        RuntimeError: it ended, or was not ready in time; with its log.
    """
    with tempfile.TemporaryDirectory(prefix="lorafleet-bench-") as folder:
        log, cache = Path(folder) / "log", Path(folder) / "cache"
        for made in (cache, KERNELS):
            made.mkdir(parents=True, exist_ok=True)
        (cache / "kernels").symlink_to(KERNELS)
        command = [sys.executable, "-m", "lorafleet_inference", "serve", f"--model={model}", "--served-name=base"]
        command += ["--host=127.0.0.1", "--port=0", "--admin-port=0", f"--cache-dir={cache}"]
        command += ["--drain-grace-seconds=0", *(f"--adapter={name}={path}" for name, path in adapters.items())]
        with log.open("wb") as output:
            process = subprocess.Popen([*command, *options], stdout=output, stderr=subprocess.STDOUT)
        try:
            yield _ready(process, log)
        except Exception:
            sys.stderr.write(f"--- the pod's log\n{log.read_text(errors='replace')[-4000:]}\n---\n")
            raise
        finally:
            process.terminate()
            process.wait()


def _ready(process: subprocess.Popen[bytes], log: Path) -> MeasuredPod:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the pod ended with status {process.returncode}")
        found = LISTENING.search(log.read_text(errors="replace"))
        if found is not None and _answers(f"{found[1]}/ready"):
            return MeasuredPod(found[1], found[2], "base", process)
        time.sleep(POLL_SECONDS)
    raise RuntimeError(f"the pod was not ready within {START_SECONDS} seconds")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False
