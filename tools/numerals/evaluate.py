"""The bar that shipped weights are held to, through the served API."""

import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from numerals.asking import AskingError, Score, ask_all, known_models
from numerals.split import asked

BAR = 0.99
START_SECONDS = 120.0
_LISTENING = re.compile(r"listening on (http://\S+)")


def evaluate(url: str, num_numbers: int) -> bool:
    """Ask each model that the API at `url` offers and we know; print a table and return whether all reached the bar.

    The questions to all models are mixed, so that a batch holds as many adapters as it can.

    Raises:
        AskingError: the API offers none of ours, or a question got no answer.
    """
    models = asyncio.run(known_models(url))
    if not models:
        raise AskingError(f"{url} offers none of the numerals models")
    numbers = {model: asked(model)[:num_numbers] for model in models}
    questions = [(model, numbers[model][index]) for index in range(num_numbers) for model in models]
    begin = time.perf_counter()
    scores = asyncio.run(ask_all(url, questions))
    seconds = time.perf_counter() - begin
    print(table(scores))
    print(f"{len(questions)} questions in {seconds:.0f} s ({len(questions) / seconds:.0f} a second)", flush=True)
    return all(score.share_right >= BAR for score in scores)


def table(scores: list[Score]) -> str:
    """Return one line a model, with the first wrong answers."""
    width = max(len(score.model) for score in scores)
    lines = []
    for score in scores:
        mark = "" if score.share_right >= BAR else "  BELOW THE BAR"
        right = score.num_asked - len(score.wrong)
        lines.append(f"{score.model:<{width}}  {right:>3} of {score.num_asked} right  {score.share_right:.1%}{mark}")
        lines += [f"    {w.number}: {w.answer!r} instead of {w.expected!r}" for w in score.wrong[:3]]
    return "\n".join(lines)


@contextmanager
def served(models: Path) -> Iterator[str]:
    """Serve the base and all adapters of a models folder on free ports, yield the URL, and end the pod.

    Raises:
        AskingError: the pod ended or was not ready in time; with the end of its log.
    """
    adapters = sorted(path.parent for path in (models / "numerals-adapters").glob("*/adapter_config.json"))
    with tempfile.TemporaryDirectory(prefix="lorafleet-numerals-") as folder:
        command = [sys.executable, "-m", "lorafleet_inference", "serve", f"--model={models / 'numerals'}"]
        command += ["--host=127.0.0.1", "--port=0", "--admin-port=0", f"--cache-dir={folder}/cache", "--dtype=float32"]
        command += ["--drain-grace-seconds=0", "--kv-cache-memory=128Mi"]
        command += [f"--adapter={adapter.name}={adapter}" for adapter in adapters]
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield _wait_ready(process, log)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if found := _LISTENING.search(log.read_text(errors="replace")):
            response = httpx.get(f"{found[1]}/ready", timeout=START_SECONDS, trust_env=False)
            if response.status_code == 200:
                return found[1]
        time.sleep(0.05)
    ended = "ended" if process.poll() is not None else f"is not ready after {START_SECONDS:.0f} s"
    raise AskingError(f"the pod {ended}; its log ends with\n{log.read_text(errors='replace')[-3000:]}")
