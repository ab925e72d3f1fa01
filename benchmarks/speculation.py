"""Answers with and without draft tokens, in turns in one process. `python benchmarks/speculation.py`.

With `--draft-layers N`, a draft model proposes the tokens: the first N layers of the model, with its embedding and head; as
many as it has are a draft that is always right, and costs what the model costs. Of a random model, fewer are hardly ever right;
with `--later-layers S` the other layers add only the part S of what random ones add, and the first ones draw what the model
draws more often, the smaller S is: how often is printed.

The model is random, and greedy answers of random models soon repeat themselves: that is the case for which n-gram speculation is.
The other one is of answers that are drawn at temperature 1, which repeat nothing. Each round answers the same requests
without and with drafts; what counts is the ratio of a round, and the medians of all rounds are printed as JSON.
"""

import argparse
import json
import queue
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
from measure.environment import describe
from measure.models import first_layers, make_model, with_later_layers
from measure.sizes import SIZES

from lorafleet_inference.adapters.inspect import inspect_adapter
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.core import Engine
from lorafleet_inference.engine.messages import FromEngine, SamplingParams, Submit, ToEngine, Tokens
from lorafleet_inference.engine.token_events import TokenEvent
from lorafleet_inference.model.draft import load_runners

PROMPT_TOKENS = 64
ANSWER_TOKENS = 48
BATCHES = (1, 4, 16)


class Driven:
    """An engine that is driven here."""

    def __init__(self, model: Path, draft_tokens: int, cache: Path, draft: Path | None = None) -> None:
        config = EngineConfig(
            model=str(model),
            device="cpu",
            speculative_tokens=draft_tokens,
            speculative_model=None if draft is None else str(draft),
            kernel_cache=str(cache / "kernels"),
            prefix_caching=False,
        )
        self._said: list[FromEngine] = []
        self._inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        runner, draft_runner = load_runners(config)
        inspect = partial(inspect_adapter, model=runner.facts, max_rank=config.max_rank)
        self._engine = Engine(runner, config, inspect, self._said.append, self._inbox, draft_runner=draft_runner)

    def answer(self, num_requests: int, temperature: float) -> tuple[float, list[TokenEvent]]:
        """Return the seconds that these requests take together, and what was said of them."""
        for number in range(num_requests):
            draw = torch.Generator().manual_seed(number)
            prompt = torch.randint(10, 4000, (PROMPT_TOKENS,), generator=draw).tolist()
            sampling = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=temperature, seed=number, ignore_eos=True)
            self._inbox.put(Submit(f"r{number}", tuple(prompt), None, sampling))
        self._said.clear()
        began = time.perf_counter()
        self._engine.drain(wait=False)
        while self._engine.step().items:
            self._engine.publish()
        seconds = time.perf_counter() - began
        return seconds, [event for one in self._said if isinstance(one, Tokens) for event in one.events]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="124m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=lambda text: tuple(map(int, text.split(","))), default=BATCHES)
    parser.add_argument("--temperatures", type=lambda text: tuple(map(float, text.split(","))), default=(0.0, 1.0))
    parser.add_argument("--draft-tokens", type=int, default=8)
    parser.add_argument("--draft-layers", type=int)
    parser.add_argument("--later-layers", type=float, default=1.0)
    parser.add_argument("--cache", type=Path, default=Path(".local/benchmarks"))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    model = make_model(options.size, options.cache, "float32")
    draft = None
    if options.draft_layers is not None:
        if options.later_layers != 1.0:
            model = with_later_layers(model, options.draft_layers, options.later_layers, options.cache)
        draft = first_layers(model, options.draft_layers, options.cache)
    elif options.later_layers != 1.0:
        parser.error("--later-layers needs --draft-layers")
    without, drafting = Driven(model, 0, options.cache), Driven(model, options.draft_tokens, options.cache, draft)
    rows = []
    for temperature in options.temperatures:
        for batch in options.batches:
            for each in (without, drafting):
                each.answer(batch, temperature)
            ratios, part = [], 0.0
            for _ in range(options.rounds):
                (plain, events), (drafted, others) = (each.answer(batch, temperature) for each in (without, drafting))
                ratios.append(plain / drafted)
                num_drafted = sum(event.num_draft_tokens for event in others)
                part = sum(event.num_accepted_tokens for event in others) / num_drafted if num_drafted else 0.0
                if _answers(events) != _answers(others):
                    sys.exit("the answers are not the same")
            rows.append(
                {
                    "temperature": temperature,
                    "requests": batch,
                    "faster": round(statistics.median(ratios), 2),
                    "drafted_per_token": round(num_drafted / (batch * ANSWER_TOKENS), 2),
                    "right": round(part, 2),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    if options.output is not None:
        found = {
            "environment": describe("cpu"),
            "size": options.size,
            "draft_tokens": options.draft_tokens,
            "draft_layers": options.draft_layers,
            "later_layers": options.later_layers,
            "rows": rows,
        }
        options.output.write_text(json.dumps(found, indent=1) + "\n")


def _answers(events: list[TokenEvent]) -> dict[str, list[int]]:
    answers: dict[str, list[int]] = {}
    for event in events:
        answers.setdefault(event.request_id, []).extend(event.token_ids)
    return answers


if __name__ == "__main__":
    main()
