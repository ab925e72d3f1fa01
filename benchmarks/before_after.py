#!/usr/bin/env python3
"""The same steps by the engine of another checkout and by this one, in turns. `python benchmarks/before_after.py CHECKOUT`.

Each checkout's engine is a process of its own, which keeps a random Llama and does one step when it is told to: a round has each
step by the one and then by the other, so that a machine that is slow for a while is slow for both. What counts is the ratio of a
round. With one thread it is CPU time that is taken, which other programs change little.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from measure import environment, report

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "before_after.json"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafleet" / "benchmarks"
RANK = 16
SIDES = ("before", "after")
WARM_UP = 1
"""Rounds that do not count."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a step computes: of each sequence `length` tokens, from position `start` on, by that many adapters in turn."""

    count: int
    start: int
    length: int
    adapters: int

    @property
    def name(self) -> str:
        """For people."""
        what = (
            f"decode, {self.count} sequences" if self.length == 1 else f"prompts, {self.count} of {self.length} tokens"
        )
        return what.replace("1 sequences", "1 sequence") if self.count == 1 else what


SETS = {
    "prompts": ((1, 0, 512), (1, 0, 1024), (1, 0, 2048), (8, 0, 128), (16, 128, 1)),
    "serving": ((16, 0, 128), (64, 128, 1)),
}
"""Steps that are measured together; of "serving", what 64 requests of 128 tokens are made of."""


def steps_of(name: str, adapters: Sequence[int]) -> list[Step]:
    """Return what is measured."""
    return [Step(*shape, number) for number in adapters for shape in SETS[name]]


class Side:
    """The engine of a checkout, in a process."""

    def __init__(self, checkout: Path, options: argparse.Namespace) -> None:
        paths = [checkout / part / "src" for part in ("contract", "common", "inference")]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
        command = [sys.executable, str(Path(__file__).resolve()), str(checkout), "--serve", "--size", options.size]
        command += ["--threads", str(options.threads), "--folder", str(options.folder), "--most", str(options.most)]
        self._process = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout
        )
        self._answer()

    def milliseconds(self, step: Step) -> float:
        """Have a step computed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(step)) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the engine ended with {self._process.wait()}")
        return line


def serve(options: argparse.Namespace) -> None:
    """Compute steps as they are asked for, of the checkout that PYTHONPATH names."""
    import lorafleet_inference  # noqa: PLC0415
    from lorafleet_inference.engine import allocator  # noqa: PLC0415

    if allocator.TUNABLES not in os.environ:  # memory as an engine process gets it
        os.execve(sys.executable, [sys.executable, *sys.argv], allocator.with_settings(os.environ, "cpu"))
    assert Path(lorafleet_inference.__file__).is_relative_to(options.before), "the other checkout's code was found"
    from decoder import install, step  # noqa: PLC0415
    from measure.models import make_adapters, make_model  # noqa: PLC0415

    from lorafleet_inference.config import EngineConfig  # noqa: PLC0415
    from lorafleet_inference.model.loader import load_model  # noqa: PLC0415
    from lorafleet_inference.model.runner import ModelRunner  # noqa: PLC0415

    model = make_model(options.size, options.folder, "float32")
    config = EngineConfig(
        model=str(model),
        device="cpu",
        dtype="float32",
        num_threads=options.threads,
        max_rank=RANK,
        max_resident_adapters=max(1, options.most),
    )
    runner = ModelRunner(load_model(config), config)
    keys = install(runner, make_adapters(model, options.most, options.folder, rank=RANK))
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    print("ready", flush=True)
    for line in sys.stdin:
        wanted = Step(**json.loads(line))
        plan = step(wanted.count, wanted.start, wanted.length, keys[: wanted.adapters])
        began = clock()
        runner.compute(plan)
        print(1e3 * (clock() - began), flush=True)


def rows_of(steps: Sequence[Step], sides: Mapping[str, Side], rounds: int) -> list[dict[str, Any]]:
    """Return one row a step: the times of all rounds, and the median of their ratios."""
    times: dict[Step, dict[str, list[float]]] = {step: {side: [] for side in SIDES} for step in steps}
    for number in range(WARM_UP + rounds):
        for step in steps:
            for name in SIDES if number % 2 else reversed(SIDES):
                took = sides[name].milliseconds(step)
                if number >= WARM_UP:
                    times[step][name].append(took)
    rows = []
    for step, found in times.items():
        ratios = [after / before for before, after in zip(found["before"], found["after"], strict=True)]
        medians = {f"{side}_ms": round(median(found[side]), 2) for side in SIDES}
        spread = [round(min(ratios), 3), round(max(ratios), 3)]
        rows.append({"step": step.name, **asdict(step), **medians, "ratio": round(median(ratios), 3), "ratios": spread})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the results and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--size", default="124m", help="of the random Llama")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--adapters", type=int, nargs="+", default=[0, 4], help="distinct ones in a step")
    parser.add_argument("--steps", choices=sorted(SETS), default="prompts", help="which steps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=CACHE, help="for models and adapters")
    parser.add_argument("--output", type=Path, default=RESULTS, help="rows of other steps in it stay")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--most", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.before, options.folder = options.before.resolve(), options.folder.resolve()
    if options.serve:
        serve(options)
        return
    options.most = max(options.adapters)
    sides = {"before": Side(options.before, options), "after": Side(ROOT, options)}
    described = environment.describe("cpu")
    found = rows_of(steps_of(options.steps, options.adapters), sides, options.rounds)
    for side in sides.values():
        side.close()
    common = {"size": options.size, "threads": options.threads, "rounds": options.rounds, "commit": described["commit"]}
    rows = [{**common, **row} for row in found]
    if options.output.exists():
        kept = json.loads(options.output.read_text())["before_after"]
        names = ("size", "threads", "step", "adapters")
        measured = {tuple(row[name] for name in names) for row in rows}
        rows = [row for row in kept if tuple(row[name] for name in names) not in measured] + rows
    before = environment.commit_of(options.before)
    setting = {"before": before, "rank": RANK, "dtype": "float32", "time": "CPU time with one thread, else wall time"}
    document = {"environment": described, "setting": setting, "rows": [], "before_after": rows}
    report.write(options.output, document)
    sys.stdout.write(report.tables(document))


if __name__ == "__main__":
    main()
