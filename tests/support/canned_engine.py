"""An engine process without a model: each answer is the tokens of its prompt, over and over. For EngineClient's `run`.

It begins when `--streams` requests have come. A step gives each of them one token; `--at-once` steps are written
together, and `--rate` says how many tokens a second all of them get (0: as fast as they are taken). With `--ticked` each
Cancel of an unknown request makes one step, and nothing else does.
"""

import argparse
import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from lorafleet_inference.engine.channel import EngineEnd, StartEngine, frame
from lorafleet_inference.engine.engine_program import RunEngine, run_program
from lorafleet_inference.engine.messages import (
    Backend,
    Cancel,
    EngineBudgets,
    EngineReady,
    Kernels,
    ModelFacts,
    Ping,
    Pong,
    Shutdown,
    Submit,
    ToEngine,
    Tokens,
)
from lorafleet_inference.engine.token_events import FinishReason, TokenEvent, TokenLogprobs

BUDGETS = EngineBudgets(
    num_kv_blocks=1024,
    kv_block_tokens=16,
    kv_cache_bytes=1 << 20,
    kv_cache_dtype="float32",
    max_resident_adapters=1,
    max_rank=8,
    total_rank_pages=1,
    host_cache_bytes=1,
)
EMBEDDED, EMBEDDING_SIZE = 0.5, 8
LOGPROB = -0.5


def program(*options: str) -> RunEngine:
    """Return what runs it."""
    return partial(run_program, program=(sys.executable, str(Path(__file__).resolve()), *options))


def facts_of(model: Path) -> ModelFacts:
    """Return what is known of a model folder without its weights."""
    config = json.loads((model / "config.json").read_text())
    return ModelFacts(
        architecture=config["architectures"][0],
        model_type=config["model_type"],
        num_layers=config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        max_model_len=config["max_position_embeddings"],
        dtype="float32",
        device="cpu",
        eos_token_ids=(),
        modules=(),
        embedding_size=config.get("hidden_size", EMBEDDING_SIZE),
    )


@dataclass(slots=True)
class Run:
    """A request, and how many tokens it got."""

    submit: Submit
    num_tokens: int = 0

    def event(self) -> TokenEvent:
        """Return its next token, or an embedding of as many numbers as are asked for."""
        if self.submit.pooling is not None:
            numbers = array("f", [EMBEDDED] * (self.submit.pooling.dimensions or 1))
            return TokenEvent(self.submit.request_id, finish=FinishReason.STOP, embedding=numbers.tobytes())
        sampling, prompt = self.submit.sampling, self.submit.prompt_token_ids
        token_id = prompt[self.num_tokens % len(prompt)]
        first = self.num_tokens == 0
        self.num_tokens += 1
        scored = None
        if first and sampling.prompt_logprobs is not None:
            scored = tuple(_logprobs(one, sampling.prompt_logprobs) for one in prompt[1:])
        return TokenEvent(
            self.submit.request_id,
            token_ids=(token_id,),
            logprobs=None if sampling.num_logprobs is None else (_logprobs(token_id, sampling.num_logprobs),),
            prompt_logprobs=scored,
            finish=FinishReason.LENGTH if self.num_tokens == sampling.max_tokens else None,
            queue_seconds=0.0 if first else None,
        )


def _logprobs(token_id: int, num_top: int) -> TokenLogprobs:
    return TokenLogprobs(LOGPROB, tuple((token_id + index, LOGPROB - index) for index in range(num_top)))


class CannedEngine:
    """Owns the requests."""

    def __init__(self, connection: socket.socket, model: Path, options: argparse.Namespace) -> None:
        self._connection = connection
        self._options = options
        self._inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self._runs: dict[str, Run] = {}
        self._step_times: list[float] = []
        self._ended = False
        self._ticks = 0
        end = EngineEnd(connection)
        threading.Thread(target=self._receive, args=(end.messages(),), daemon=True).start()
        end.send(EngineReady(facts_of(model), BUDGETS, Backend(Kernels.TORCH)))

    def serve(self) -> None:
        """Answer one round of requests after the other."""
        while not self._ended:
            while not self._ended and len(self._runs) < self._options.streams:
                self._take(self._inbox.get())
            self._round()
            if self._options.times is not None:
                self._options.times.write_text(json.dumps(self._step_times))

    def _round(self) -> None:
        rate, at_once = self._options.rate, self._options.at_once
        self._step_times = []
        due = time.monotonic()
        while self._runs and not self._ended:
            with contextlib.suppress(queue.Empty):
                while True:
                    self._take(self._inbox.get_nowait())
            if self._options.ticked and not self._ticks:
                self._take(self._inbox.get())
                continue
            self._ticks = max(0, self._ticks - 1)
            data = b"".join(self._steps(at_once))
            self._step_times += [time.monotonic()] * at_once
            self._connection.sendall(data)
            if rate:
                due += at_once * self._options.streams / rate
                time.sleep(max(0.0, due - time.monotonic()))

    def _steps(self, number: int) -> Iterator[bytes]:
        for _ in range(number):
            events = tuple(run.event() for run in self._runs.values())
            for event in events:
                if event.finish is not None:
                    del self._runs[event.request_id]
            yield frame(Tokens(events))

    def _take(self, message: ToEngine) -> None:
        match message:
            case Submit(request_id):
                self._runs[request_id] = Run(message)
            case Cancel(request_id):
                if self._runs.pop(request_id, None) is not None:
                    self._connection.sendall(frame(Tokens((TokenEvent(request_id, finish=FinishReason.CANCELLED),))))
                else:
                    self._ticks += 1
            case Ping():
                self._connection.sendall(frame(Pong()))
            case Shutdown():
                self._ended = True

    def _receive(self, messages: Iterator[ToEngine]) -> None:
        for message in messages:
            self._inbox.put(message)
            if isinstance(message, Shutdown):
                return
        os._exit(1)  # the API process is gone


def main(arguments: Sequence[str]) -> None:
    """Serve until Shutdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--ticked", action="store_true")
    parser.add_argument("--times", type=Path, help="a file that gets the times of the last round's steps")
    parser.add_argument("fd", type=int)
    options = parser.parse_args(arguments)
    start = msgspec.json.decode(sys.stdin.buffer.read(), type=StartEngine)
    CannedEngine(socket.socket(fileno=options.fd), Path(start.config.model), options).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
