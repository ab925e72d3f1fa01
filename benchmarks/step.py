"""CPU time of a step before anything is computed: planning, and gathering the batch. `python benchmarks/step.py`.

No model runs: tokens are drawn, so what is timed is what stands between two steps of a device.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence

import torch

from lorafleet_inference.engine.block_manager import BlockManager
from lorafleet_inference.engine.messages import AdapterKey, SamplingParams, Submit
from lorafleet_inference.engine.plan import Sampled, StepResult
from lorafleet_inference.engine.scheduler import Scheduler
from lorafleet_inference.engine.vocabulary import Vocabulary
from lorafleet_inference.model.input_batch import InputBatch

BLOCK_TOKENS = 16
VOCABULARY = Vocabulary(1 << 17, 1 << 17)


def measure(num_requests: int, context: int, num_adapters: int, num_steps: int) -> dict[str, float]:
    """Return milliseconds of each part of a decode step, medians."""
    num_blocks = num_requests * (context + num_steps + BLOCK_TOKENS) // BLOCK_TOKENS + num_requests
    scheduler = Scheduler(
        BlockManager(num_blocks, BLOCK_TOKENS, prefix_caching=True),
        max_batch_tokens=num_requests * context,  # all prompts in the first step
        max_batch_requests=num_requests,
        max_model_len=1 << 17,
        eos_token_ids=(),
        vocabulary_of=lambda _: VOCABULARY,
    )
    batch = InputBatch(num_requests + 1, 1 << 17, torch.device("cpu"))
    adapters = [AdapterKey(f"a{number}", f"sha256:{number:064x}") for number in range(num_adapters)]
    for number in range(num_requests):
        prompt = tuple((number * 7919 + 31 * at) % VOCABULARY.num_inputs for at in range(context))
        adapter = adapters[number % num_adapters] if adapters else None
        sampling = SamplingParams(max_tokens=2 * num_steps, temperature=0, seed=number)
        assert scheduler.submit(Submit(f"r{number}", prompt, adapter, sampling)) is None
    times: dict[str, list[float]] = {"plan": [], "batch": [], "commit": []}
    while len(times["plan"]) < num_steps:
        began = time.thread_time()
        plan = scheduler.plan(adapters)
        planned = time.thread_time()
        batch.apply(plan)
        batch.to_device(batch.gather(plan.items))
        gathered = time.thread_time()
        result = StepResult({item.request_id: Sampled(5) for item in plan.items if item.samples})
        before = time.thread_time()
        scheduler.advance(plan)
        scheduler.resolve(result)
        committed = time.thread_time()
        batch.resolve(plan.items, batch.rows(plan.items), result)
        if all(item.decode for item in plan.items) and len(plan.items) == num_requests:
            for part, seconds in zip(times, (planned - began, gathered - planned, committed - before), strict=True):
                times[part].append(1e3 * seconds)
    return {part: round(statistics.median(some), 3) for part, some in times.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line of JSON a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, nargs="+", default=[32, 128, 256])
    parser.add_argument("--context", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--adapters", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for num_requests in options.requests:
        for context in options.context:
            found = measure(num_requests, context, options.adapters, options.steps)
            print(json.dumps({"requests": num_requests, "context": context, **found, "unit": "ms"}), flush=True)


if __name__ == "__main__":
    main()
