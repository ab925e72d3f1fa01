"""The processes of the ranks beside the first: started by the engine process, and watched by it until they end."""

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from lorafleet_common.errors import ConfigError
from lorafleet_common.logs import LogFormat
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.steps import StepFailed
from lorafleet_inference.model.loader import device_of, load_model, usable_cores
from lorafleet_inference.model.ranks.group import JOIN_SECONDS, process_group
from lorafleet_inference.model.ranks.leader import VERDICT_SECONDS, Others, RankedRunner
from lorafleet_inference.model.ranks.messages import (
    BEAT_SECONDS,
    Beat,
    Ended,
    Message,
    Pipes,
    Reading,
    Ready,
    StartRank,
)
from lorafleet_inference.model.reading import Slowest, Tell, nobody
from lorafleet_inference.model.runner import ModelRunner

logger = logging.getLogger(__name__)
SILENT_SECONDS = 10.0
"""A rank that was ready and gives no sign of life for so long is lost."""
END_SECONDS = 30.0
"""Ranks that were told to end have so long before they are killed."""
GONE_SECONDS = 2.0
"""Between the end of a rank's pipe and that of its process, at most."""
PROGRAM = (sys.executable, "-m", "lorafleet_inference.engine.rank_process")
"""Runs a rank; the numbers of its pipes are appended."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Why the ranks cannot go on."""

    message: str
    option: str = ""
    """The option that made the start impossible, where one did."""


class RankProcess(Protocol):
    """A process that runs `run_rank`."""

    def wait(self, timeout_seconds: float) -> int | None:
        """Wait for its end; return its status, negative for a signal, or None when it goes on."""

    def kill(self) -> None:
        """End it."""


class _Program(RankProcess):
    def __init__(self, pipes: Pipes) -> None:
        numbers = [pipe.fileno() for pipe in (pipes.life, pipes.steps, pipes.loads)]
        self._process = subprocess.Popen([*PROGRAM, *map(str, numbers)], pass_fds=numbers)  # noqa: S603  our own program

    def wait(self, timeout_seconds: float) -> int | None:
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        self._process.kill()


class RankProcesses(Others):
    """The ranks from 1 on of one engine. `on_lost` is called once, on a thread of its own, when one cannot go on."""

    def __init__(
        self,
        starts: Sequence[StartRank],
        on_lost: Callable[[Lost], None],
        run: Callable[[Pipes], RankProcess] = _Program,
        *,
        silent_seconds: float = SILENT_SECONDS,
        on_reading: Callable[[int, int], None] = lambda _rank, _percent: None,
    ) -> None:
        """Start them. `run`: takes the rank's ends of the pipes, of which its process has copies when it returns; `on_reading`:
        hears of a rank how much of the weights it has read, in per cent, on a thread of its own.
        """
        self._on_lost, self._on_reading = on_lost, on_reading
        self._silent_seconds = silent_seconds
        self._lost: Lost | None = None
        self._is_lost, self._are_ready = threading.Event(), threading.Event()
        self._closing = False
        self._processes: list[RankProcess] = []
        self._max_step_seconds = max(start.config.max_step_seconds for start in starts)
        pipes: list[Pipes] = []
        for start in starts:
            (life, its_life), (steps, its_steps), (loads, its_loads) = Pipe(), Pipe(), Pipe()
            theirs = Pipes(its_life, its_steps, its_loads)
            self._processes.append(run(theirs))
            for pipe in (its_life, its_steps, its_loads):
                pipe.close()
            with suppress(OSError):  # one that is gone already is found by the watch
                steps.send(start)
            pipes.append(Pipes(life, steps, loads))
        self.pipes = tuple(pipes)
        self._heard = [time.monotonic()] * len(pipes)
        self._ready: set[int] = set()
        self._watching = threading.Thread(target=self._watch, name="rank-watch", daemon=True)
        self._watching.start()

    def wait_ready(self) -> None:
        """Wait until all have their part of the model.

        Raises:
            StepFailed: one is lost.
        """
        self._are_ready.wait()
        if self._lost is not None:
            raise StepFailed(self._lost.message)

    def why_lost(self, timeout_seconds: float) -> str | None:
        """As `Others`."""
        self._is_lost.wait(timeout_seconds)
        return None if self._lost is None else self._lost.message

    def tell_to_end(self) -> None:
        """Have the ranks end."""
        self._closing = True
        for pipes in self.pipes:
            pipes.steps.close()

    def close(self) -> None:
        """End the ranks."""
        self.tell_to_end()
        if not self._are_ready.is_set():  # they may have long to load, and hear nothing meanwhile
            for process in self._processes:
                process.kill()
        deadline = time.monotonic() + END_SECONDS
        for process in self._processes:
            if process.wait(max(0.0, deadline - time.monotonic())) is None:
                process.kill()
                process.wait(END_SECONDS)
        self._watching.join()
        for pipes in self.pipes:
            pipes.life.close()
            pipes.loads.close()

    def _watch(self) -> None:
        lives = {pipes.life: number for number, pipes in enumerate(self.pipes)}
        while lives:
            for life in wait(list(lives), BEAT_SECONDS):
                assert isinstance(life, Connection)
                number = lives[life]
                try:
                    message: Message = life.recv()
                except (EOFError, OSError):
                    del lives[life]
                    self._lose(number, self._end_of(number))
                else:
                    self._hear(number, message)
            for number in self._ready if lives else ():
                if time.monotonic() - self._heard[number] > self._silent_seconds:
                    self._lose(number, f"gave no sign of life for {self._silent_seconds:g} seconds")

    def _hear(self, number: int, message: Message) -> None:
        self._heard[number] = time.monotonic()
        match message:
            case Reading(percent):
                self._on_reading(number + 1, percent)
            case Ready():
                self._ready.add(number)
                if len(self._ready) == len(self.pipes):
                    self._are_ready.set()
            case Ended(words, option):
                self._lose(number, words, option)
            case Beat(seconds) if seconds > self._max_step_seconds and number in self._ready:
                self._lose(number, f"hangs: it has computed one step for {seconds:.0f} seconds")

    def _lose(self, number: int, words: str, option: str = "") -> None:
        if self._closing or self._lost is not None:
            return
        self._lost = Lost(f"rank {number + 1}: {words}", option)
        self._is_lost.set()
        self._are_ready.set()
        threading.Thread(target=self._on_lost, args=(self._lost,), name="rank-lost", daemon=True).start()

    def _end_of(self, number: int) -> str:
        status = self._processes[number].wait(GONE_SECONDS)
        if status is None:
            return "closed its pipe"
        if status >= 0:
            return f"its process ended with status {status}"
        with suppress(ValueError):
            return f"its process was ended by {signal.Signals(-status).name}"
        return f"its process was ended by signal {-status}"


@contextmanager
def _named_where_it_is_lost(others: RankProcesses) -> Iterator[None]:
    """What fails here because another rank ended says so."""
    try:
        yield
    except (ConfigError, StepFailed):
        raise
    except Exception as error:
        why = others.why_lost(VERDICT_SECONDS)
        if why is None:
            raise
        raise StepFailed(why) from error


@contextmanager
def on_ranks(
    config: EngineConfig,
    log_level: str,
    log_format: LogFormat,
    on_lost: Callable[[Lost], None],
    run: Callable[[Pipes], RankProcess] = _Program,
    *,
    silent_seconds: float = SILENT_SECONDS,
    tell: Tell = nobody,
) -> Iterator[RankedRunner]:
    """Load the model on as many ranks as the config asks for, of which this process is the first, and end the others after use.

    `tell`: how much of the weights all of them have read.

    Raises:
        ConfigError: this rank's part cannot be served.
        StepFailed: another rank ended. `on_lost` is told first, and has to end the process: this thread may wait for that rank.
    """
    size = config.tensor_parallel_size
    # ranks share the cores
    config = replace(config, num_threads=max(1, (config.num_threads or usable_cores()) // size))
    with TemporaryDirectory(prefix="lorafleet-ranks-") as folder, ExitStack() as ends:
        store = Path(folder) / "store"
        starts = [StartRank(config, rank, str(store), log_level, log_format) for rank in range(1, size)]
        slowest = Slowest(size, tell)
        others = RankProcesses(starts, on_lost, run, silent_seconds=silent_seconds, on_reading=slowest.tell)
        ends.callback(others.close)
        with _named_where_it_is_lost(others):
            group = ends.enter_context(process_group(0, size, device_of(config), store, JOIN_SECONDS))
            ends.callback(others.tell_to_end)  # they leave the group with this rank
            loaded = load_model(config, tell=partial(slowest.tell, 0))
            runner = ModelRunner(loaded, config, ahead=False, group=group)
            runner.prepare()
            others.wait_ready()
        logger.info("the model is split among %d ranks", size)
        yield RankedRunner(runner, others)
