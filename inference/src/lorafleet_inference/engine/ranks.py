"""The processes of the ranks beside the first: started by the engine process, and watched by it until they end."""

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from lorafleet_common.errors import ConfigError
from lorafleet_common.logs import LogFormat
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.cores import usable_cores
from lorafleet_inference.engine.gathering import Gathering
from lorafleet_inference.engine.hosts import Host
from lorafleet_inference.engine.rank_program import RankProcess, RankProgram
from lorafleet_inference.engine.steps import StepFailed
from lorafleet_inference.model.draft import load_runners
from lorafleet_inference.model.loader import device_of
from lorafleet_inference.model.ranks.group import FILE, TCP, Store, process_group, serve_store, store_of
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
    pipe,
)
from lorafleet_inference.model.ranks.wire import readable
from lorafleet_inference.model.reading import Slowest, Tell, nobody
from lorafleet_inference.model.runner import ModelRunner

logger = logging.getLogger(__name__)
SILENT_SECONDS = 10.0
"""A rank that was ready and gives no sign of life for so long is lost."""
END_SECONDS = 30.0
"""Ranks that were told to end have so long before they are killed."""
GONE_SECONDS = 2.0
"""Between the end of a rank's pipe and that of its process, at most."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Why the ranks cannot go on."""

    message: str
    option: str = ""
    """The option that made the start impossible, where one did."""


class _OnHost(RankProcess):
    """A process of another host."""

    def __init__(self, host: Host, rank: int) -> None:
        self._host, self._rank = host, rank
        self.where = f" on {host.name}"

    def wait(self, timeout_seconds: float) -> int | None:
        return self._host.status_of(self._rank, timeout_seconds)

    def kill(self) -> None:
        self._host.close()  # which ends what runs there


def _program(pipes: Pipes) -> RankProcess:
    return RankProgram([pipe.fileno() for pipe in (pipes.life, pipes.steps, pipes.loads)])


class RankProcesses(Others):
    """The ranks from 1 on of one engine. `on_lost` is called once, on a thread of its own, when one cannot go on."""

    def __init__(
        self,
        starts: Sequence[StartRank],
        on_lost: Callable[[Lost], None],
        run: Callable[[Pipes], RankProcess] = _program,
        *,
        hosts: Sequence[Host] = (),
        silent_seconds: float = SILENT_SECONDS,
        on_reading: Callable[[int, int], None] = lambda _rank, _percent: None,
    ) -> None:
        """Start them. `run`: takes the rank's ends of the pipes, of which its process has copies when it returns; `on_reading`:
        hears of a rank how much of the weights it has read, in per cent, on a thread of its own.

        `hosts`: have those of the ranks that are not of this host, and have started them.
        """
        self._on_lost, self._on_reading = on_lost, on_reading
        self._silent_seconds = silent_seconds
        self._lost: Lost | None = None
        self._is_lost, self._are_ready = threading.Event(), threading.Event()
        self._closing = False
        self._processes: list[RankProcess] = []
        self._max_step_seconds = max(start.config.max_step_seconds for start in starts)
        self._hosts = hosts
        host_of = {rank: host for host in hosts for rank in host.ranks}
        self._host_of = [host_of.get(start.rank) for start in starts]
        pipes: list[Pipes] = []
        for start, host in zip(starts, self._host_of, strict=True):
            if host is None:
                ours, theirs = _pipes()
                self._processes.append(run(theirs))
                for end in (theirs.life, theirs.steps, theirs.loads):
                    end.close()
            else:
                ours = host.pipes[start.rank]
                self._processes.append(_OnHost(host, start.rank))
            with suppress(OSError):  # one that is gone already is found by the watch
                ours.steps.send(start)
            pipes.append(ours)
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

    @contextmanager
    def lend(self, plan: AdapterPlan) -> Iterator[list[AdapterPlan]]:
        """As `Others`."""
        with ExitStack() as ends:
            by_host = {host.index: ends.enter_context(host.lend(plan)) for host in self._hosts}
            yield [plan if host is None else by_host[host.index] for host in self._host_of]

    def lose_host(self, host: Host, words: str) -> None:
        """Take note that a host is gone."""
        self._lose(host.ranks.start - 1, words)

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
            for life in readable(lives, BEAT_SECONDS):
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
        self._lost = Lost(f"rank {number + 1}{self._processes[number].where}: {words}", option)
        self._is_lost.set()
        self._are_ready.set()
        threading.Thread(target=self._on_lost, args=(self._lost,), name="rank-lost", daemon=True).start()

    def _end_of(self, number: int) -> str:
        status = self._processes[number].wait(GONE_SECONDS)
        if status is None:
            return "closed its pipe" if (host := self._host_of[number]) is None else host.why_silent
        if status >= 0:
            return f"its process ended with status {status}"
        with suppress(ValueError):
            return f"its process was ended by {signal.Signals(-status).name}"
        return f"its process was ended by signal {-status}"


def _pipes() -> tuple[Pipes, Pipes]:
    """Return our ends of pipes of this host, and the others."""
    pairs = [socket.socketpair() for _ in range(3)]
    ours, theirs = zip(*((pipe(one), pipe(other)) for one, other in pairs), strict=True)
    return Pipes(*ours), Pipes(*theirs)


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
    run: Callable[[Pipes], RankProcess] = _program,
    *,
    silent_seconds: float = SILENT_SECONDS,
    tell: Tell = nobody,
) -> Iterator[tuple[RankedRunner, ModelRunner | None]]:
    """Load the model on as many ranks as the config asks for, of which this process is the first, and end the others after use.

    The draft model beside it, where there is one, is whole on this rank.

    `tell`: how much of the weights all of them have read.

    Raises:
        ConfigError: this rank's part cannot be served.
        StepFailed: another rank ended. `on_lost` is told first, and has to end the process: this thread may wait for that rank.
    """
    size = config.tensor_parallel_size
    # ranks share the cores
    own = replace(config, num_threads=max(1, (config.num_threads or usable_cores()) // config.ranks_per_host))
    with ExitStack() as ends:
        gathering = (
            ends.enter_context(closing(Gathering(config, silent_seconds=silent_seconds))) if config.hosts > 1 else None
        )
        hosts = [] if gathering is None else gathering.wait()
        store, url = _store(hosts, size, Path(ends.enter_context(TemporaryDirectory(prefix="lorafleet-ranks-"))))
        starts = [StartRank(own, rank, url, log_level, log_format) for rank in range(1, config.ranks_per_host)]
        for host in hosts:
            there = _config_on(host, config)
            starts += [StartRank(there, rank, url, log_level, log_format) for rank in host.ranks]
        slowest = Slowest(size, tell)
        others = RankProcesses(
            starts, on_lost, run, hosts=hosts, silent_seconds=silent_seconds, on_reading=slowest.tell
        )
        if gathering is not None:
            gathering.follow(others.lose_host)
        ends.callback(others.close)
        with _named_where_it_is_lost(others):
            group = ends.enter_context(process_group(0, size, device_of(own), store, is_one_host=not hosts))
            ends.callback(others.tell_to_end)  # they leave the group with this rank
            runner, draft_runner = load_runners(own, ahead=False, group=group, tell=partial(slowest.tell, 0))
            runner.prepare()
            if draft_runner is not None:
                draft_runner.prepare()
            others.wait_ready()
        logger.info("the model is split among %d ranks on %d hosts", size, config.hosts)
        yield RankedRunner(runner, others, num_hosts=config.hosts), draft_runner


def _store(hosts: Sequence[Host], size: int, folder: Path) -> tuple[Store, str]:
    """Return what the ranks find each other by, and its URL for the others."""
    if hosts:
        address = hosts[0].own_address
        store, port = serve_store(address, size)
        return store, f"{TCP}{address}:{port}"
    url = f"{FILE}{folder / 'store'}"
    return store_of(url, size), url


def _config_on(host: Host, config: EngineConfig) -> EngineConfig:
    """Return the config of a rank on another host."""
    assert host.config.num_threads is not None
    threads = max(1, host.config.num_threads // config.ranks_per_host)
    return replace(config, model=host.config.model, kernel_cache=host.config.kernel_cache, num_threads=threads)
