#!/usr/bin/env python3
"""What popularity beyond what is resident costs: Zipf over many registered adapters of which a few are resident, and over those few.

Two engines in this process get runs of requests in turns. What is taken is CPU time of the whole process, loads of adapters among it,
with one thread for steps: other programs change it little. Time that a request waits for a file is not in it.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from measure import environment, report  # noqa: E402

from lorafleet_inference.engine import allocator  # noqa: E402

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafleet" / "benchmarks"
RESULTS = ROOT / "benchmarks" / "results" / "registered.json"
RANK = 16
AT_ONCE = 100
"""Adapters that are registered together."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the results and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--size", default="124m", help="of the random Llama")
    parser.add_argument("--registered", type=int, default=2000, help="adapters of the second engine")
    parser.add_argument(
        "--resident", type=int, default=64, help="of them in memory at a time, and adapters of the first"
    )
    parser.add_argument("--requests", type=int, default=64, help="of a run, all at once")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=CACHE, help="for models and adapters")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    setting = {
        "model": f"random Llama {options.size}",
        "requests": options.requests,
        "prompt_tokens": options.prompt_tokens,
        "answer_tokens": options.answer_tokens,
        "rank": RANK,
        "threads": 1,
    }
    document: dict[str, Any] = {"environment": environment.describe("cpu"), "setting": setting, "rows": []}
    engines = {number: _engine(options, number) for number in (options.resident, options.registered)}
    found: dict[int, list[float]] = {number: [] for number in engines}
    for seed in range(-1, options.rounds):
        for number, engine in engines.items() if seed % 2 else reversed(engines.items()):
            seconds = _run(engine, options, number, seed)
            if seed >= 0:  # the first one makes the popular ones resident
                found[number].append(round(seconds, 3))
            sys.stderr.write(f"{number} registered: {seconds:.2f} s\n")
            sys.stderr.flush()
        if seed >= 0:  # after each round: a long run that is cut leaves what it has
            few, many = found.values()
            ratio = round(median(one / other for one, other in zip(few, many, strict=True)), 3)
            result = {"few": options.resident, "many": options.registered, "few_seconds": few, "many_seconds": many}
            document["registered"] = {**result, "ratio": ratio}
            report.write(options.output, document)
    sys.stdout.write(report.tables(document))


def _engine(options: argparse.Namespace, number: int) -> Any:
    from measure.models import make_adapters, make_model  # noqa: PLC0415  --help answers at once
    from support.engines import DrivenEngine  # noqa: PLC0415

    from lorafleet_inference.config import EngineConfig  # noqa: PLC0415

    model = make_model(options.size, options.cache, "float32")
    folders = make_adapters(model, options.resident, options.cache, rank=RANK)
    config = EngineConfig(
        model=str(model),
        device="cpu",
        dtype="float32",
        num_threads=1,
        max_rank=RANK,
        max_resident_adapters=options.resident,
    )
    engine = DrivenEngine(config)
    for begin in range(0, number, AT_ONCE):
        some = range(begin, min(begin + AT_ONCE, number))
        engine.register({f"a{at:04}": folders[at % len(folders)] for at in some}, resident=False)
    return engine


def _run(engine: Any, options: argparse.Namespace, number: int, seed: int) -> float:
    """Return the CPU seconds of a run; the one before the first has short requests."""
    from measure.sizes import SIZES  # noqa: PLC0415
    from measure.workload import Lengths, zipf  # noqa: PLC0415

    from lorafleet_inference.engine.messages import SamplingParams  # noqa: PLC0415

    prompt, answer = (options.prompt_tokens, options.answer_tokens) if seed >= 0 else (8, 4)
    asks = zipf(options.requests, number, Lengths(prompt, answer, SIZES[options.size].vocabulary), seed=100 + seed)
    began = time.process_time()
    for at, ask in enumerate(asks):
        sampling = SamplingParams(max_tokens=ask.num_tokens, temperature=0, ignore_eos=True)
        engine.submit(f"{seed}-{at}", f"a{ask.adapter:04}", ask.prompt, sampling)
    engine.run_until_ended([f"{seed}-{at}" for at in range(len(asks))], timeout_seconds=600)
    return time.process_time() - began


if __name__ == "__main__":
    if allocator.TUNABLES not in os.environ:  # memory as an engine process gets it
        os.execve(sys.executable, [sys.executable, *sys.argv], allocator.with_settings(os.environ, "cpu"))
    main()
