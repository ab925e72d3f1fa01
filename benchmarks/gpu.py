#!/usr/bin/env python3
"""What a step of the engine costs on a GPU, beside the least it can cost: decode, prompts, mixed ranks, cold adapters.

Model and adapters are random; nothing is downloaded. Without a GPU it exits with 2. `--device cpu --size tiny` proves the
script; its times say nothing of a GPU.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measure import environment, report
from measure.sizes import SIZES

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafleet" / "benchmarks"
RESULTS = Path(__file__).resolve().parent / "results"
PARTS = ("transformers", "decode", "early", "ranks", "prefill", "cold", "kernels")
MIXED_RANKS = (8, 16, 32, 64, 128)
RANK = 16
"""Of adapters where not said otherwise."""
EARLY_ADAPTERS = (1, 8, 32)
"""Of the steps that are timed with launches in turn and with some that begin early."""
EARLY_BATCH = 128
NUM_KERNELS = 30
"""That take longest are kept."""
NO_GPU = 2


def main(arguments: list[str] | None = None) -> int:
    """Measure what was asked for; returns the exit status."""
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # how long kernels and graphs take at the start
    import torch  # noqa: PLC0415  --help and bad options answer at once

    if chosen.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("gpu.py: torch finds no CUDA device here, so nothing was measured\n")
        return NO_GPU
    document: dict[str, Any] = {
        "environment": environment.describe(chosen.device) | ({"commit": chosen.commit} if chosen.commit else {}),
        "setting": {
            "model": f"random Llama {chosen.size}",
            "dtype": chosen.dtype,
            "context": chosen.context,
            "rank": RANK,
            "decoder": chosen.decoder,
            "rounds": chosen.rounds,
        },
        "rows": [],
        "gpu": {},
    }
    _Run(chosen, document).all()
    sys.stdout.write(report.tables(document))
    return 1 if "failed" in document["gpu"] else 0


class _Run:
    """Fills the document part by part and writes it after each: a run that is cut leaves what it has."""

    def __init__(self, chosen: argparse.Namespace, document: dict[str, Any]) -> None:
        import torch  # noqa: PLC0415
        from measure import gpu_steps  # noqa: PLC0415
        from measure.models import make_adapters  # noqa: PLC0415

        self._chosen, self._document, self._found = chosen, document, document["gpu"]
        self._steps, self._size = gpu_steps, SIZES[chosen.size]
        self._began = time.monotonic()
        dtype: torch.dtype = getattr(torch, chosen.dtype)
        self._itemsize = dtype.itemsize
        self._max_len = max(chosen.context, *chosen.prompts) + 1
        self._config = gpu_steps.config_of(self._size, self._max_len)
        folder = chosen.cache / f"gpu-{chosen.size}"
        self._config.save_pretrained(folder)
        ranks = sorted({RANK, *(MIXED_RANKS if "ranks" in chosen.parts else ())})
        self._tell(f"adapters of ranks {ranks}")
        self._folders = {rank: make_adapters(folder, 1, chosen.cache, rank=rank)[0] for rank in ranks}
        self._model = gpu_steps.make(self._config, chosen.device, dtype)
        self._ceilings = gpu_steps.ceilings(chosen.device, dtype)
        self._found["ceilings"] = asdict(self._ceilings)
        self._bench: gpu_steps.Bench | None = None

    def all(self) -> None:
        """Run the parts; one that fails is told and leaves the others."""
        for part in PARTS:
            if part not in self._chosen.parts:
                continue
            if time.monotonic() - self._began > self._chosen.budget:
                self._found.setdefault("skipped", []).append(part)
                continue
            try:
                getattr(self, f"_{part}")()
            except Exception as error:  # noqa: BLE001  the others can still be measured
                self._found.setdefault("failed", {})[part] = f"{type(error).__name__}: {error}"[:500]
                self._tell(f"{part} failed: {error!r}")
            self._save()

    def _transformers(self) -> None:
        rows = self._found["transformers"] = []
        for batch in self._chosen.batches:
            found = self._steps.transformers_decode_ms(
                self._model, self._config, batch, self._chosen.context, self._chosen.rounds
            )
            rows.append({"batch": batch, "step_ms": round(found, 3)})

    def _decode(self) -> None:
        rows = self._found["decode"] = []
        for num_adapters in self._chosen.adapters:
            keys = self._runner.install([RANK] * num_adapters)
            batches = [batch for batch in self._chosen.batches if batch >= num_adapters]
            rows.extend(self._decoded(batch, [RANK] * num_adapters, keys) for batch in batches)

    def _early(self) -> None:
        """`--dependent-launch` on and off; of the most adapters also in a pod for no larger rank than theirs."""
        batch = max((one for one in self._chosen.batches if one <= EARLY_BATCH), default=min(self._chosen.batches))
        numbers = [one for one in EARLY_ADAPTERS if one in self._chosen.adapters and one <= batch]
        rows = self._found["early"] = []
        for number in numbers or [min(batch, max(*self._chosen.adapters, 1))]:
            keys = self._runner.install([RANK] * number)
            plan = self._runner.decode(batch, self._chosen.context, keys)
            bounds = sorted({max(self._folders), *([RANK] if number == max(numbers, default=number) else [])})
            times = self._runner.early_ms(
                plan, self._chosen.rounds, batch=batch, num_adapters=number, rank_bounds=bounds
            )
            rows.extend({"batch": batch, "adapters": number, **asdict(one)} for one in times)
            self._tell(f"{rows[-1]}")

    def _ranks(self) -> None:
        """Mixed ranks beside the same adapters if each took the largest rank: what padded slots would read."""
        batch = max(self._chosen.batches)
        rows = self._found["ranks"] = []
        both = (self._mixed(), [max(MIXED_RANKS)] * len(self._mixed()))
        rows.extend(self._decoded(batch, ranks, self._runner.install(ranks)) for ranks in both)

    def _prefill(self) -> None:
        rows = self._found["prefill"] = []
        (key,) = self._runner.install([RANK])
        for tokens in self._chosen.prompts:
            for rank in (0, RANK):
                plan = self._runner.prefill(tokens, key if rank else None)
                times = self._runner.times(plan, max(3, self._chosen.rounds // 4))
                floor = 1e3 * self._prefill_floor(tokens, rank)
                rows.append({"tokens": tokens, "adapters": int(rank > 0), **_cost(times.median_ms, floor)})

    def _cold(self) -> None:
        keys = self._runner.install([RANK])
        batch = max(self._chosen.batches)
        read, install = self._runner.load_ms(RANK)
        plan = self._runner.decode(batch, self._chosen.context, keys)
        alone, beside = self._runner.beside_loads(plan, RANK, self._chosen.loads)
        self._found["cold"] = {
            "read_ms": round(read, 2),
            "install_ms": round(install, 2),
            "batch": batch,
            "num_loads": self._chosen.loads,
            "alone": _rounded(asdict(alone)),
            "beside": _rounded(asdict(beside)),
        }

    def _kernels(self) -> None:
        """What the device runs in a decode step, kernel by kernel."""
        batch, most = max(self._chosen.batches), max(self._chosen.adapters)
        rows = self._found["kernels"] = []
        for number in sorted({0, most}):
            keys = self._runner.install([RANK] * number)
            plan = self._runner.decode(batch, self._chosen.context, keys)
            found = self._runner.kernels(plan, max(2, self._chosen.rounds // 4))
            rows.append({"batch": batch, "adapters": number, "kernels": found[:NUM_KERNELS]})

    @property
    def _runner(self) -> Any:
        """The runner, made once it is needed: its KV takes the memory that transformers' part had."""
        if self._bench is None:
            chosen = self._chosen
            self._bench = self._steps.Bench(
                self._model,
                chosen.device,
                folders=self._folders,
                max_batch=max(chosen.batches),
                max_tokens=max(max(chosen.batches) * (chosen.context + 16), self._max_len + 16),
                max_model_len=self._max_len,
                num_adapters=max(*self._chosen.adapters, 2) + 1 + len(self._mixed()),
                num_ranks=self._num_ranks(),
                own_decoder=chosen.decoder == "own",
            )
        return self._bench

    def _num_ranks(self) -> int:
        """Return the ranks, of all adapters together, of the part that needs most."""
        needed = [(max(*self._chosen.adapters, 2) + 1) * RANK]
        if "ranks" in self._chosen.parts:
            needed.append(len(self._mixed()) * max(MIXED_RANKS))
        return max(needed)

    def _mixed(self) -> list[int]:
        return [MIXED_RANKS[number % len(MIXED_RANKS)] for number in range(self._chosen.mixed)]

    def _decoded(self, batch: int, ranks: Sequence[int], keys: Sequence[Any]) -> dict[str, Any]:
        from measure.floors import decode_seconds  # noqa: PLC0415

        context = self._chosen.context
        plan = self._runner.decode(batch, context, keys)
        times = self._runner.times(plan, self._chosen.rounds)
        ahead = self._runner.ahead_ms(plan, 2 * self._chosen.rounds)
        floor = decode_seconds(self._size, self._itemsize, self._ceilings, batch=batch, context=context, ranks=ranks)
        row = {
            "batch": batch,
            "adapters": len(ranks),
            "sum_of_ranks": sum(ranks),
            **_cost(times.median_ms, floor * 1e3),
        }
        row["ahead_ms"] = round(ahead, 3)
        row["tokens_per_second"] = round(batch / ahead * 1e3, 1)
        self._tell(f"{row}")
        return row

    def _prefill_floor(self, tokens: int, rank: int) -> float:
        from measure.floors import prefill_seconds  # noqa: PLC0415

        return prefill_seconds(self._size, self._itemsize, self._ceilings, tokens=tokens, rank=rank)

    def _save(self) -> None:
        report.write(self._chosen.output, self._document)

    def _tell(self, line: str) -> None:
        sys.stderr.write(f"{time.monotonic() - self._began:6.1f} s  {line}\n")
        sys.stderr.flush()


def _cost(step_ms: float, floor_ms: float) -> dict[str, float]:
    return {"step_ms": round(step_ms, 3), "floor_ms": round(floor_ms, 4), "of_floor": round(step_ms / floor_ms, 2)}


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def _numbers(least: int) -> Callable[[str], list[int]]:
    def parse(text: str) -> list[int]:
        numbers = [int(word) for word in text.split(",")]
        if min(numbers) < least:
            raise argparse.ArgumentTypeError(f"{min(numbers)} is less than {least}")
        return numbers

    return parse


def _parts(text: str) -> list[str]:
    words = [word for word in text.split(",") if word]
    if unknown := sorted(set(words) - set(PARTS)):
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(PARTS)}")
    return words


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--parts", type=_parts, default=list(PARTS), help=f"of {', '.join(PARTS)}")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="where steps run")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of weights, KV and adapters")
    add("--size", choices=sorted(SIZES), default="8b", help="size of the random Llama; its head is not tied")
    add(
        "--decoder",
        choices=("own", "transformers"),
        default="own",
        help="code of the layers, in all parts but the first",
    )
    add("--batches", type=_numbers(1), default=[1, 32, 128, 256], help="sequences of a decode step")
    add("--adapters", type=_numbers(0), default=[0, 1, 8, 32, 128], help="distinct adapters of a decode step")
    add("--mixed", type=int, default=32, help=f"adapters of the ranks {', '.join(map(str, MIXED_RANKS))} in turn")
    add("--context", type=int, default=1024, help="tokens of each sequence of a decode step")
    add("--prompts", type=_numbers(1), default=[1024, 4096, 8192], help="tokens of prompts")
    add("--loads", type=int, default=20, help="cold adapters that come beside decode steps")
    add("--rounds", type=int, default=20, help="counted steps of each kind")
    add("--budget", type=float, default=400, help="seconds after which no part is begun")
    add("--commit", default="", help="commit of the code, where that is no checkout")
    add("--cache", type=Path, default=CACHE, help="folder of the made adapters")
    add("--output", type=Path, default=RESULTS / "gpu.json", help="file of the results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
