"""One system on one workload in a process of its own: `python -m measure.systems SYSTEM JOB.json` prints its result.

A process each, so that memory is its own and nothing is warm from another.
"""

import json
import queue
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure.memory import peak_bytes
from measure.timing import Figures, Timeline, figures
from measure.workload import Ask


@dataclass(frozen=True, slots=True)
class Job:
    """What a process is given, as JSON."""

    model: str
    adapters: list[str]
    """Folders; an ask's adapter is an index here."""
    runs: list[list[Ask]]
    """The first one warms up and is not counted."""
    device: str
    dtype: str
    threads: int
    max_batch_tokens: int
    rank: int

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """Read it from text."""
        values = json.loads(text)
        values["runs"] = [[Ask(**{**ask, "prompt": tuple(ask["prompt"])}) for ask in run] for run in values["runs"]]
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Result:
    """What it prints, as JSON."""

    runs: list[Figures]
    peak_bytes: int


def generate(job: Job) -> list[Figures]:
    """transformers' generate on one batch; the base alone."""
    model = _base(job)
    return [_timed(run, lambda asks: _generate(model, asks)) for run in job.runs][1:]


def peft_mixed(job: Job) -> list[Figures]:
    """PEFT's mixed batch: one generate, each row with its own adapter."""
    model = _with_adapters(job)

    def once(run: Sequence[Ask]) -> None:
        _generate(model, run, adapter_names=[_name(ask.adapter) for ask in run])

    return [_timed(run, once) for run in job.runs][1:]


def peft_sequential(job: Job) -> list[Figures]:
    """PEFT one adapter after the other: a batch of each adapter's requests."""
    model = _with_adapters(job)

    def once(run: Sequence[Ask]) -> None:
        for adapter in sorted({ask.adapter for ask in run if ask.adapter is not None}):
            model.set_adapter(_name(adapter))
            _generate(model, [ask for ask in run if ask.adapter == adapter])

    return [_timed(run, once) for run in job.runs][1:]


def engine(job: Job) -> list[Figures]:
    """Our engine without a server: what the server costs is the difference."""
    from functools import partial  # noqa: PLC0415

    from lorafleet_inference.adapters.inspect import inspect_adapter  # noqa: PLC0415
    from lorafleet_inference.config import EngineConfig  # noqa: PLC0415
    from lorafleet_inference.engine import messages  # noqa: PLC0415
    from lorafleet_inference.engine.core import Engine, Inbox  # noqa: PLC0415
    from lorafleet_inference.model.loader import load_model  # noqa: PLC0415
    from lorafleet_inference.model.runner import ModelRunner  # noqa: PLC0415

    config = EngineConfig(
        model=job.model,
        device=job.device,  # type: ignore[arg-type]
        dtype=job.dtype,  # type: ignore[arg-type]
        num_threads=job.threads,
        max_batch_tokens=job.max_batch_tokens,
        max_resident_adapters=max(1, len(job.adapters)),
        max_rank=job.rank,
    )
    inbox: Inbox = queue.SimpleQueue()
    said: list[tuple[float, Any]] = []
    runner = ModelRunner(load_model(config), config)
    inspect = partial(inspect_adapter, model=runner.facts, max_rank=config.max_rank)
    loop = Engine(runner, config, inspect, lambda message: said.append((time.perf_counter(), message)), inbox)
    keys = [messages.AdapterKey(_name(index), f"sha256:{index:064x}") for index in range(len(job.adapters))]
    for key, folder in zip(keys, job.adapters, strict=True):
        inbox.put(messages.RegisterAdapter(key, folder, resident=True))
    _until(loop, lambda: sum(isinstance(one, messages.AdapterStatus) for _, one in said) >= len(keys))
    answers = []
    for run in job.runs:
        timelines = {f"{number}": Timeline(time.perf_counter()) for number in range(len(run))}
        said.clear()
        for number, ask in enumerate(run):
            sampling = messages.SamplingParams(max_tokens=ask.num_tokens, temperature=0, ignore_eos=True)
            chosen = None if ask.adapter is None else keys[ask.adapter]
            inbox.put(messages.Submit(f"{number}", ask.prompt, chosen, sampling))
        num_ended = 0
        while num_ended < len(run):
            loop.drain(wait=False)
            loop.step()
            loop.publish()
            for when, message in said:
                for event in message.events if isinstance(message, messages.Tokens) else ():
                    timelines[event.request_id].events.append(when)
                    timelines[event.request_id].num_tokens += len(event.token_ids)
                    num_ended += event.finish is not None
            said.clear()
        answers.append(figures(list(timelines.values())))
    return answers[1:]


def _until(loop: Any, done: Callable[[], bool]) -> None:
    while not done():
        loop.drain(wait=False)
        loop.step()
        loop.publish()
        time.sleep(0.001)


def _base(job: Job) -> Any:
    import torch  # noqa: PLC0415  `engine` sets threads itself
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    torch.set_num_threads(job.threads)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype))
    return model.to(job.device).eval()


def _with_adapters(job: Job) -> Any:
    from peft import PeftModel  # noqa: PLC0415  half a second

    warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a name that is being renamed
    model = PeftModel.from_pretrained(_base(job), job.adapters[0], adapter_name=_name(0))
    for index, folder in enumerate(job.adapters[1:], 1):
        model.load_adapter(folder, adapter_name=_name(index))
    return model.to(job.device).eval()


def _generate(model: Any, run: Sequence[Ask], **more: Any) -> None:
    import torch  # noqa: PLC0415  loaded by now

    ids = torch.tensor([ask.prompt for ask in run], device=model.device)
    wanted = run[0].num_tokens
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=wanted,
            eos_token_id=None,
            pad_token_id=2,
            **more,
        )
    assert out.shape[1] == ids.shape[1] + wanted, "an answer is too short"


def _timed(run: Sequence[Ask], once: Callable[[Sequence[Ask]], None]) -> Figures:
    began = time.perf_counter()
    once(run)
    return Figures(sum(ask.num_tokens for ask in run) / (time.perf_counter() - began))


def _name(adapter: int | None) -> str:
    return "__base__" if adapter is None else f"a{adapter:04}"


SYSTEMS: Mapping[str, Callable[[Job], list[Figures]]] = {
    "generate": generate,
    "peft-mixed": peft_mixed,
    "peft-sequential": peft_sequential,
    "engine": engine,
}


def main(arguments: list[str]) -> None:
    job = Job.from_json(Path(arguments[1]).read_text())
    result = Result(SYSTEMS[arguments[0]](job), 0)
    sys.stdout.write(json.dumps({**asdict(result), "peak_bytes": peak_bytes()}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
