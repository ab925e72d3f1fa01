#!/usr/bin/env python3
"""What a token costs the API process of a pod: an engine without a model gives it canned tokens at a given rate.

The API process is a process of its own with everything that serves the public port; its CPU time comes from the kernel.
Engine and client are other processes. The client takes what comes at once and looks at it after the run.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from measure import environment, report  # noqa: E402
from measure.tokenizer import tokenizer  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "api_process.json"
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
QUESTION = "An answer is what was asked, again and again. "
VOCABULARY = 4096
MAX_MODEL_LEN = 8192
PROMPT = list(range(300, 364))
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Case:
    """One row. `rate` counts tokens a second of all choices together; 0 is as fast as they are taken."""

    name: str
    num_requests: int
    rate: float = 0.0
    chat: bool = False
    n: int = 1
    logprobs: int | None = None

    @property
    def num_choices(self) -> int:
        return self.num_requests * self.n

    def body(self, num_tokens: int) -> tuple[str, bytes]:
        """Return path and body of its requests."""
        common: dict[str, Any] = {"model": "base", "max_tokens": num_tokens, "n": self.n, "stream": True}
        common["stream_options"] = {"include_usage": True}
        if self.chat:
            common["messages"] = [{"role": "user", "content": QUESTION}]
            return "/v1/chat/completions", json.dumps(common).encode()
        common["prompt"] = PROMPT
        if self.logprobs is not None:
            common["logprobs"] = self.logprobs
        return "/v1/completions", json.dumps(common).encode()


CASES = (
    Case("64 streams, 2,000 tokens/s", 64, 2000.0),
    Case("256 streams, 8,000 tokens/s", 256, 8000.0),
    Case("64 streams, as fast as it can", 64),
    Case("256 streams, as fast as it can", 256),
    Case("256 chats, as fast as it can", 256, chat=True),
    Case("64 requests of n = 4, as fast as it can", 64, n=4),
    Case("64 streams with 5 logprobs, as fast as it can", 64, logprobs=5),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. Latencies are from the engine's writing a token to the client's reading it."""

    cpu_ms_per_token: float
    tokens_per_second: float
    events_per_token: float
    latency_p50_ms: float
    latency_p99_ms: float


class Reader(asyncio.Protocol):
    """Sends one request and keeps what comes, with its time."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.chunks: list[tuple[float, bytes]] = []
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.chunks.append((time.monotonic(), data))

    def connection_lost(self, _: Exception | None) -> None:
        self.ended.set_result(None)


async def ask(url: str, case: Case, num_tokens: int) -> list[Reader]:
    """Send all requests at once and wait for their ends."""
    place = urlsplit(url)
    path, body = case.body(num_tokens)
    head = f"POST {path} HTTP/1.1\r\nhost: {place.netloc}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    loop = asyncio.get_running_loop()
    readers = []
    for _ in range(case.num_requests):
        _, reader = await loop.create_connection(lambda: Reader(head.encode() + body), place.hostname, place.port)
        readers.append(reader)
    await asyncio.gather(*(reader.ended for reader in readers))
    return readers


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def measure(process: subprocess.Popen[bytes], url: str, times: Path, case: Case, sizes: Sequence[int]) -> Measured:
    """Run a case once; `sizes` are the characters of an answer's tokens.

    Raises:
        RuntimeError: an answer is not what was asked for.
    """
    times.unlink(missing_ok=True)
    before, began = cpu_seconds(process.pid), time.monotonic()
    readers = asyncio.run(ask(url, case, len(sizes)))
    took, spent = time.monotonic() - began, cpu_seconds(process.pid) - before
    deadline = time.monotonic() + 10
    while not times.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    steps = json.loads(times.read_text())
    found = [_look(reader, case, sizes, steps) for reader in readers]
    latencies = sorted(latency for _, some in found for latency in some)
    total = case.num_choices * len(sizes)
    return Measured(
        cpu_ms_per_token=1e3 * spent / total,
        tokens_per_second=total / took,
        events_per_token=sum(number for number, _ in found) / total,
        latency_p50_ms=1e3 * latencies[len(latencies) // 2],
        latency_p99_ms=1e3 * latencies[len(latencies) * 99 // 100],
    )


def _look(reader: Reader, case: Case, sizes: Sequence[int], steps: Sequence[float]) -> tuple[int, list[float]]:
    """Return how many events show text, and the latency of each token; `sizes` are the tokens' characters."""
    events: list[list[tuple[float, int]]] = [[] for _ in range(case.n)]
    rest, usage = b"", None
    for when, data in reader.chunks:
        *lines, rest = (rest + data).split(b"\n")
        for document in (json.loads(line[6:]) for line in lines if line.startswith(b"data: {")):
            usage = document.get("usage") or usage
            for choice in document["choices"]:
                text = choice["delta"].get("content", "") if case.chat else choice["text"]
                if text:
                    events[choice["index"]].append((when, len(text)))
    if usage is None or usage["completion_tokens"] != case.n * len(sizes):
        raise RuntimeError(f"{usage} is not {case.n * len(sizes)} tokens: {reader.chunks[-1][1][-500:]!r}")
    latencies: list[float] = []
    for mine in events:
        due, shown, coming = 0, 0, iter(mine)
        for size, sent in zip(sizes, steps, strict=True):
            due += size
            while shown < due:
                when, num_chars = next(coming)
                shown += num_chars
            latencies.append(when - sent)
    return sum(map(len, events)), latencies


def model_folder(folder: Path) -> Path:
    """Return a model without weights."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": MAX_MODEL_LEN,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer(VOCABULARY).save(str(folder / "tokenizer.json"))
    return folder


def token_sizes(model: Path, case: Case, num_tokens: int) -> list[int]:
    """Return the characters of each token of an answer."""
    known = Tokenizer.from_file(str(model / "tokenizer.json"))
    prompt = known.encode(QUESTION).ids if case.chat else PROMPT
    return [len(known.decode([token_id])) for _, token_id in zip(range(num_tokens), cycle(prompt), strict=False)]


@contextlib.contextmanager
def api_process(model: Path, times: Path, case: Case) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run an API process and its engine; yields them with the URL."""
    options = (f"--streams={case.num_choices}", f"--rate={case.rate}", f"--times={times}")
    command = [sys.executable, "-m", "support.canned_pod", str(model), *options]
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})
    try:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        if not url:
            raise RuntimeError(f"the API process ended with status {process.wait()}")
        yield process, url
    finally:
        process.terminate()
        process.wait()


def rows(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure all cases and yield their medians."""
    with tempfile.TemporaryDirectory(prefix="lorafleet-bench-") as folder:
        model, times = model_folder(Path(folder) / "model"), Path(folder) / "times"
        for case in (case for case in CASES if chosen.cases in case.name):
            with api_process(model, times, case) as (process, url):
                sizes = token_sizes(model, case, chosen.tokens)
                runs = [measure(process, url, times, case, sizes) for _ in range(1 + chosen.repeats)][1:]
            middle = Measured(*(median(column) for column in zip(*(asdict(run).values() for run in runs), strict=True)))
            sys.stderr.write(f"{case.name}: {middle}\n")
            yield {
                "case": case.name,
                **asdict(middle),
                "cpu_ms_per_token_runs": [round(run.cpu_ms_per_token, 5) for run in runs],
            }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--tokens", type=int, default=256, help="of each answer")
    add("--repeats", type=int, default=5, help="counted runs of each case, after one that is not")
    add("--before", type=Path, help="results of another version in the same sitting, to stand beside")
    add("--output", type=Path, default=RESULTS, help="file of the results")
    add("--cases", default="", help="only those with this text in their name")
    chosen = parser.parse_args(arguments)
    found = environment.describe("cpu")
    document: dict[str, Any] = {
        "environment": found,
        "setting": {"answer_tokens": chosen.tokens, "repeats": chosen.repeats},
        "rows": [],
        "api_process": list(rows(chosen)),
    }
    if chosen.before is not None:
        before = json.loads(chosen.before.read_text())
        document["before"] = {"commit": before["environment"]["commit"], "api_process": before["api_process"]}
    report.write(chosen.output, document)
    sys.stdout.write(report.tables(document))


if __name__ == "__main__":
    main()
