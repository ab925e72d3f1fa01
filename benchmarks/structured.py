#!/usr/bin/env python3
"""What a form of the answer costs: the same requests with and without a JSON schema, in turns, on one engine.

All requests come at once and end by length, so both kinds compute the same number of tokens. The engine runs in this process;
what the API process does beside it is not part of this.
"""

import argparse
import os
import random
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from measure import environment, report  # noqa: E402
from measure.sizes import SIZES  # noqa: E402

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafleet" / "benchmarks"
RESULTS = ROOT / "benchmarks" / "results" / "structured.json"
SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    },
    "minItems": 100,
}


def main(arguments: list[str] | None = None) -> None:
    """Measure, write the results and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--size", default="124m", help="size of the random Llama")
    parser.add_argument("--requests", type=int, default=64, help="requests of a run, all at once")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="of each request")
    parser.add_argument("--answer-tokens", type=int, default=64, help="of each request")
    parser.add_argument("--repeats", type=int, default=3, help="counted runs of each kind")
    parser.add_argument("--output", type=Path, default=RESULTS, help="file of the results")
    chosen = parser.parse_args(arguments)

    from lorafleet_inference.server.structured import of_schema  # noqa: PLC0415  --help answers at once

    engine = _engine(chosen.size)
    kinds = {"free": None, "JSON schema": of_schema(SCHEMA)}
    for kind, grammar in kinds.items():
        _run(engine, f"warm-up-{kind}", grammar, chosen)
    runs: dict[str, list[float]] = {kind: [] for kind in kinds}
    for repeat in range(chosen.repeats):
        for kind, grammar in kinds.items():
            runs[kind].append(_run(engine, f"{kind}-{repeat}", grammar, chosen))
            sys.stderr.write(f"{kind}: {runs[kind][-1]:.1f} tokens/s\n")
    ratio = median(with_form / free for free, with_form in zip(runs["free"], runs["JSON schema"], strict=True))
    document: dict[str, Any] = {
        "environment": environment.describe("cpu"),
        "setting": {"model": f"random Llama {chosen.size}", "requests": chosen.requests}
        | {"prompt_tokens": chosen.prompt_tokens, "answer_tokens": chosen.answer_tokens},
        "rows": [],
        "structured": {"tokens_per_second": runs, "ratio": ratio},
    }
    report.write(chosen.output, document)
    sys.stdout.write(report.tables(document))


def _engine(size: str) -> Any:
    from measure.models import make_model  # noqa: PLC0415
    from support.engines import DrivenEngine  # noqa: PLC0415

    from lorafleet_inference.config import EngineConfig  # noqa: PLC0415
    from lorafleet_inference.engine.grammars import GrammarTokenizer  # noqa: PLC0415
    from lorafleet_inference.text.tokenizer_files import load_tokenizer  # noqa: PLC0415

    model = make_model(size, CACHE, "float32")
    config = EngineConfig(model=str(model), device="cpu", prefix_caching=False, target_step_ms=1e9)
    return DrivenEngine(config, grammar_tokenizer=GrammarTokenizer(load_tokenizer(model)[0]))


def _run(engine: Any, name: str, grammar: str | None, chosen: argparse.Namespace) -> float:
    """Return tokens per second of one run."""
    from lorafleet_inference.engine.messages import SamplingParams  # noqa: PLC0415

    chance = random.Random(name)
    vocabulary = SIZES[chosen.size].vocabulary
    ids = [f"{name}-{number}" for number in range(chosen.requests)]
    for number, request_id in enumerate(ids):
        prompt = [chance.randrange(300, min(4000, vocabulary)) for _ in range(chosen.prompt_tokens)]
        sampling = SamplingParams(max_tokens=chosen.answer_tokens, seed=number, grammar=grammar, ignore_eos=True)
        engine.submit(request_id, None, prompt, sampling)
    began = time.perf_counter()
    engine.run_until_ended(ids, timeout_seconds=3600)
    seconds = time.perf_counter() - began
    num_tokens = sum(len(engine.tokens(request_id)) for request_id in ids)
    assert num_tokens == chosen.requests * chosen.answer_tokens, "an answer was refused or ended early"
    return num_tokens / seconds


if __name__ == "__main__":
    main()
