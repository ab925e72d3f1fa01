"""Our own decoder beside transformers' code, step by step in one process. `python benchmarks/decoder.py`.

Both serve the same random Llama; each round runs the same step with the one and then with the other, so that a machine that is slow
for a while is slow for both. What counts is the ratio of a round; the medians of all rounds are printed, one line of JSON a step.
With one thread it is CPU time that is taken, which other programs hardly change.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from measure.environment import describe
from measure.models import make_adapters, make_model
from measure.sizes import SIZES

from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.config import KV_BLOCK_TOKENS, EngineConfig
from lorafleet_inference.engine import allocator
from lorafleet_inference.engine.messages import AdapterKey, SamplingParams
from lorafleet_inference.engine.plan import NewRequest, StepItem, StepPlan
from lorafleet_inference.model.loader import load_model
from lorafleet_inference.model.runner import ModelRunner

RANK = 16
CONTEXT = 128
GREEDY = SamplingParams(max_tokens=1, temperature=0)
PROMPTS = ((1, 512), (8, 128))
"""Sequences of a step, and tokens of each."""
DECODES = (1, 16, 64)
"""Sequences of a step with one token each, after CONTEXT others."""


def runner_of(model: Path, decoder: str, threads: int | None, dtype: str, cache: Path) -> ModelRunner:
    """Return a runner with one of the decoders."""
    config = EngineConfig(
        model=str(model),
        decoder=decoder,  # type: ignore[arg-type]
        device="cpu",
        dtype=dtype,  # type: ignore[arg-type]
        num_threads=threads,
        max_model_len=1024,
        max_rank=RANK,
        kernel_cache=str(cache / "kernels"),
    )
    return ModelRunner(load_model(config), config)


def install(runner: ModelRunner, folders: Sequence[Path]) -> list[AdapterKey]:
    """Make adapters resident."""
    keys = []
    for number, folder in enumerate(folders):
        plan = inspect_adapter(folder, runner.facts, RANK)
        key = AdapterKey(f"a{number}", f"sha256:{number:064x}")
        pages = runner.num_pages(plan)
        runner.install(key, range(number * pages, (number + 1) * pages), runner.load_slab(plan))
        keys.append(key)
    return keys


def step(count: int, start: int, length: int, keys: Sequence[AdapterKey]) -> StepPlan:
    """Return a step of `length` tokens each of `count` sequences, from position `start` on."""
    items, new = [], []
    each = -(-(start + length) // KV_BLOCK_TOKENS)
    for number in range(count):
        tokens = tuple((number * 7919 + 31 * at) % 500 for at in range(start + length))
        key = keys[number % len(keys)] if keys else None
        blocks = tuple(range(number * each, (number + 1) * each))
        items.append(StepItem(str(number), start, length))
        new.append(NewRequest(str(number), key, tokens, len(tokens), GREEDY, blocks))
    return StepPlan(tuple(items), new=tuple(new))


def compare(runners: dict[str, ModelRunner], plan: StepPlan, rounds: int) -> dict[str, float]:
    """Return the medians of milliseconds of a step by decoder, and of the ratio of own to transformers' in a round."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(rounds + 2):
        for name, runner in runners.items():
            began = clock()
            runner.compute(plan)
            if number >= 2:
                times[name].append(1e3 * (clock() - began))
    ratios = [own / theirs for own, theirs in zip(times["own"], times["transformers"], strict=True)]
    found = {f"{name}_ms": round(statistics.median(some), 2) for name, some in times.items()}
    return {**found, "ratio": round(statistics.median(ratios), 3)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="124m", help="of the random Llama")
    parser.add_argument("--model", type=Path, help="a folder, in place of a random one; then without adapters")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--adapters", type=int, default=8, help="distinct ones in the steps with adapters; 0: none")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path(".local/bench"), help="for models and adapters")
    parser.add_argument("--output", type=Path, help="a file for the result as JSON")
    options = parser.parse_args(arguments)
    model = options.model or make_model(options.size, options.folder, "float32")
    runners = {
        name: runner_of(model, name, options.threads, options.dtype, options.folder) for name in ("own", "transformers")
    }
    folders = (
        []
        if options.model or not options.adapters
        else make_adapters(model, options.adapters, options.folder, rank=RANK)
    )
    keys: list[AdapterKey] = []
    for runner in runners.values():
        keys = install(runner, folders)
    result = {**describe("cpu"), "model": model.name, "dtype": options.dtype, "threads": torch.get_num_threads()}
    print(json.dumps(result), flush=True)
    steps = []
    for some in ([], keys) if keys else ([],):
        cases = [("prompts", count, 0, length) for count, length in PROMPTS]
        cases += [("decode", count, CONTEXT, 1) for count in DECODES]
        for kind, count, start, length in cases:
            found = compare(runners, step(count, start, length, some), options.rounds)
            steps.append({"step": kind, "sequences": count, "tokens": count * length, "adapters": len(some), **found})
            print(json.dumps(steps[-1]), flush=True)
    if options.output is not None:
        options.output.write_text(json.dumps({**result, "rounds": options.rounds, "steps": steps}, indent=1) + "\n")


if __name__ == "__main__":
    if allocator.TUNABLES not in os.environ:  # memory as an engine process gets it
        os.execve(sys.executable, [sys.executable, *sys.argv], allocator.with_settings(os.environ, "cpu"))
    main()
