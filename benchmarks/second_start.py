#!/usr/bin/env python3
"""What a node's cache saves of a pod's start: the first one downloads the base model and makes its kernels, the second finds both.

A hub on the loopback gives the weights at a given speed, all files together. Each round is a first and a second start, of whole
programs, on a cache of its own; what counts is the ratio within a round, as other programs on the machine slow both.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

import httpx  # noqa: E402
from measure import environment, report  # noqa: E402

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafleet" / "benchmarks"
RESULTS = ROOT / "benchmarks" / "results" / "second_start.json"
KERNELS = re.compile(r"CPU kernels ready in ([0-9.]+) s")
POLL_SECONDS = 0.2
"""Oftener, who asks would take from the start what it computes with."""
DOWNLOAD = 'lorafleet_base_download_seconds{base="base"}'


def main(arguments: Sequence[str] | None = None, *, forked: bool = False) -> None:
    """Measure, write the results and a table. `forked`: processes that have imported what they need, for a test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--size", default="124m", help="of the random Llama")
    parser.add_argument("--model", type=Path, help="a model's folder in place of the random Llama")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--megabytes-per-second", type=float, default=100.0, help="of the hub, over all files")
    parser.add_argument("--threads", type=int, default=2, help="of the engine")
    parser.add_argument("--kernels", type=Path, help="folder that has them: then it is only the download that differs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=CACHE, help="for the model")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    setting = {
        "model": f"random Llama {options.size}" if options.model is None else options.model.name,
        "dtype": options.dtype,
        "threads": options.threads,
        "megabytes_per_second": options.megabytes_per_second,
        "kernels": "made by the first" if options.kernels is None else "there",
    }
    document: dict[str, Any] = {"environment": environment.describe(options.device), "setting": setting, "rows": []}
    rounds: list[dict[str, Any]] = []
    for number in range(options.rounds):
        rounds.append(_round(options, forked=forked))
        first, second = rounds[-1]["first"], rounds[-1]["second"]
        sys.stderr.write(f"round {number + 1}: {first['seconds']:.1f} s, then {second['seconds']:.1f} s\n")
        sys.stderr.flush()
        ratio = round(median(one["second"]["seconds"] / one["first"]["seconds"] for one in rounds), 3)
        document["second_start"] = {"rounds": rounds, "ratio": ratio}
        report.write(options.output, document)
    sys.stdout.write(report.tables(document))


class Line:
    """A line of a speed that all threads share."""

    def __init__(self, bytes_per_second: float, sleep: Callable[[float], None] = time.sleep) -> None:
        self.num_bytes = 0
        """That went over it so far."""
        self._bytes_per_second = bytes_per_second
        self._sleep = sleep
        self._in_use = threading.Lock()

    def take(self, num_bytes: int) -> None:
        """Take the time that so many bytes need."""
        with self._in_use:
            self._sleep(num_bytes / self._bytes_per_second)
            self.num_bytes += num_bytes


def _round(options: argparse.Namespace, *, forked: bool) -> dict[str, Any]:
    from support.servers import serve_hub  # noqa: PLC0415  --help answers at once

    model = options.model if options.model is not None else _random_llama(options)
    with tempfile.TemporaryDirectory(prefix="lorafleet-bench-") as folder:
        root = Path(folder)
        shutil.copytree(model, root / "hub" / "base")
        (root / "cache").mkdir()
        if options.kernels is not None:
            (root / "cache" / "kernels").symlink_to(options.kernels)
        with serve_hub(root / "hub") as hub:
            line = Line(options.megabytes_per_second * 1e6)
            hub.trouble.pace = line.take
            found = {}
            for which in ("first", "second"):
                before = line.num_bytes
                started = _start(options, root, hub.url, which, forked=forked)
                found[which] = {**started, "downloaded_bytes": line.num_bytes - before}
            return found


def _random_llama(options: argparse.Namespace) -> Path:
    from measure.models import make_model  # noqa: PLC0415  imports torch

    return make_model(options.size, options.cache, options.dtype)


def _start(options: argparse.Namespace, root: Path, hub: str, which: str, *, forked: bool) -> dict[str, float | None]:
    """Return the seconds until a pod is ready, and of these the ones until its base was here and those of its kernels, if it made any."""
    from support.pod import start, wait_listening  # noqa: PLC0415

    own = ["--model=acme/base", "--served-name=base", f"--pod-name={which}", f"--cache-dir={root / 'cache'}"]
    ports = ["--host=127.0.0.1", "--port=0", "--admin-port=0", "--drain-grace-seconds=0"]
    engine = [f"--device={options.device}", f"--dtype={options.dtype}", f"--num-threads={options.threads}"]
    engine += ["--kv-cache-memory=64Mi", "--host-cache=64Mi"]
    env = {"HF_ENDPOINT": hub, "OMP_NUM_THREADS": str(options.threads)}
    began = time.monotonic()
    with start(*own, *ports, *engine, env=env, forked=forked) as pod:
        wait_listening(pod)
        with httpx.Client(base_url=pod.url, trust_env=False, timeout=60) as http:
            while http.get("/ready").status_code != httpx.codes.OK:
                if pod.process.poll() is not None:
                    raise RuntimeError("the pod ended")  # its log is shown
                time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - began
        made = KERNELS.search(pod.logs)
        return {
            "seconds": round(seconds, 2),
            "download_seconds": round(pod.metric(DOWNLOAD), 3),
            "kernel_seconds": float(made[1]) if made else None,
        }


if __name__ == "__main__":
    main()
