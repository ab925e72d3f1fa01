#!/usr/bin/env python3
"""How long an adapter's first token takes over a context that the base has computed: as an activated adapter, and as plain LoRA.

Both have the same weights and get the same prompt: the context, the invocation, a few tokens. They run in turns, on one engine
in this process, alone; what the API process does beside it is not part of this.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from measure import environment, report  # noqa: E402

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafleet" / "benchmarks"
RESULTS = ROOT / "benchmarks" / "results" / "activated.json"
INVOCATION = [40, 41, 42, 43]
NUM_AFTER = 4
"""Tokens of the prompt after the invocation."""
KINDS = ("plain", "activated")


def main(arguments: list[str] | None = None) -> None:
    """Measure, write the results and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--size", default="8m", help="size of the random Llama")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter, on all linear layers")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 8192], help="tokens of the shared context")
    parser.add_argument("--repeats", type=int, default=5, help="contexts of each length")
    parser.add_argument("--output", type=Path, default=RESULTS, help="file of the results")
    chosen = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as folder:
        engine = _engine(chosen, Path(folder))
        _first_tokens(engine, "warm-up", 64)
        rows = [_row(engine, context, chosen.repeats) for context in chosen.contexts]
    document: dict[str, Any] = {
        "environment": environment.describe("cpu"),
        "setting": {"model": f"random Llama {chosen.size}", "rank": chosen.rank, "repeats": chosen.repeats}
        | {"invocation_tokens": len(INVOCATION), "tokens_after": NUM_AFTER},
        "rows": [],
        "activated": rows,
    }
    report.write(chosen.output, document)
    sys.stdout.write(report.tables(document))


def _row(engine: Any, context: int, repeats: int) -> dict[str, Any]:
    runs = [_first_tokens(engine, f"{context}-{repeat}", context) for repeat in range(repeats)]
    seconds = {kind: [run[kind][0] for run in runs] for kind in KINDS}
    ratios = [run["plain"][0] / run["activated"][0] for run in runs]
    sys.stderr.write(f"{context} tokens: {ratios}\n")
    return {
        "context": context,
        "computed_tokens": {kind: median(run[kind][1] for run in runs) for kind in KINDS},
        "seconds": seconds,
        "ratio": median(ratios),
    }


def _engine(chosen: argparse.Namespace, folder: Path) -> Any:
    from measure.models import make_adapters, make_model  # noqa: PLC0415
    from support.engines import DrivenEngine  # noqa: PLC0415

    from lorafleet_inference.config import EngineConfig  # noqa: PLC0415

    length = max(chosen.contexts) + len(INVOCATION) + NUM_AFTER + 1
    model = make_model(chosen.size, CACHE, "float32", max_model_len=length)
    (plain,) = make_adapters(model, 1, CACHE, rank=chosen.rank)
    activated = Path(shutil.copytree(plain, folder / "activated"))
    config = json.loads((plain / "adapter_config.json").read_text())
    (activated / "adapter_config.json").write_text(json.dumps({**config, "alora_invocation_tokens": INVOCATION}))
    engine = DrivenEngine(EngineConfig(model=str(model), device="cpu", target_step_ms=1e9))
    engine.register({"plain": plain, "activated": activated})
    return engine


def _first_tokens(engine: Any, name: str, context: int) -> dict[str, tuple[float, int]]:
    """Have the base compute a new context; return seconds to the first token and tokens computed for it, by kind."""
    from lorafleet_inference.engine.messages import SamplingParams  # noqa: PLC0415

    chance = random.Random(name)
    shared = [chance.randrange(100, 500) for _ in range(context)]
    prompt = [*shared, *INVOCATION, *(chance.randrange(100, 500) for _ in range(NUM_AFTER))]
    once = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
    engine.submit(f"{name}-base", None, shared, once)
    engine.run_until_ended([f"{name}-base"], timeout_seconds=3600)
    found = {}
    for kind in chance.sample(KINDS, len(KINDS)):
        request_id = f"{name}-{kind}"
        began = time.perf_counter()
        engine.submit(request_id, kind, prompt, once)
        engine.run_until_ended([request_id], timeout_seconds=3600)
        seconds = time.perf_counter() - began
        (event,) = [one for one in engine.events() if one.request_id == request_id]
        found[kind] = seconds, len(prompt) - event.num_cached_tokens
    return found


if __name__ == "__main__":
    main()
