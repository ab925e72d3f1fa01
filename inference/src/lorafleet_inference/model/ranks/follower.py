"""A rank beside the first: computes the steps that it is told, and loads its part of the adapters that it is told."""

import logging
import os
import threading
import time
from collections.abc import Callable

import torch

from lorafleet_common.errors import ConfigError
from lorafleet_contract.reasons import Reason
from lorafleet_inference.device.devices import device_at
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.model.host_adapter import HostAdapter
from lorafleet_inference.model.loader import device_of, load_model
from lorafleet_inference.model.ranks.group import Group, process_group, store_of
from lorafleet_inference.model.ranks.messages import (
    BEAT_SECONDS,
    Abandon,
    Beat,
    Done,
    Ended,
    Failed,
    Install,
    Load,
    Message,
    Partial,
    Pipes,
    Reading,
    Ready,
    Remove,
    Settle,
    StartRank,
    Step,
    Whole,
)
from lorafleet_inference.model.runner import ModelRunner

logger = logging.getLogger(__name__)


def run_rank(start: StartRank, pipes: Pipes) -> int:
    """Serve as a rank until the first one ends; return the exit status."""
    life = _Life(pipes)
    life.begin()
    try:
        device = device_of(start.config, start.rank)
        size = start.config.tensor_parallel_size
        store = store_of(start.store, size)
        with process_group(start.rank, size, device, store, is_one_host=start.config.hosts == 1) as group:
            watched = _Watched(group, life)
            loaded = load_model(start.config, start.rank, lambda percent: life.say(Reading(percent)))
            runner = ModelRunner(loaded, start.config, ahead=False, group=watched)
            runner.prepare()
            loads = threading.Thread(
                target=_serve_loads, args=(runner, pipes, device), name="adapter-loader", daemon=True
            )
            loads.start()
            life.say(Ready())
            _serve_steps(runner, pipes, life)
    except ConfigError as error:
        life.say(Ended(error.problem, error.option))
        return 1
    except Exception as error:
        logger.exception("rank %d ends", start.rank)
        life.say(Ended(f"{type(error).__name__}: {error}"))
        return 1
    return 0


class _Life:
    """Says that the rank lives, and ends it when the first one is gone."""

    def __init__(self, pipes: Pipes) -> None:
        self._pipes = pipes
        self._lock = threading.Lock()
        self._since: float | None = None
        """When the rank last began to compute by itself; None: it computes nothing, or waits for other ranks."""

    def begin(self) -> None:
        """Start the threads."""
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def say(self, message: Message) -> None:
        """Say something to the first rank."""
        with self._lock:
            self._pipes.life.send(message)

    def computing(self, *, is_alone: bool) -> None:
        """Note that from now on the rank computes, or (False) waits for others."""
        self._since = time.monotonic() if is_alone else None

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            since = self._since
            try:
                self.say(Beat(0.0 if since is None else time.monotonic() - since))
            except OSError:
                os._exit(1)

    def _watch(self) -> None:
        try:
            self._pipes.life.recv()  # nothing ever comes
        except (EOFError, OSError):
            os._exit(1)


class _Watched(Group):
    """A group whose sums are told to `life`: who waits in one is not who hangs."""

    def __init__(self, group: Group, life: _Life) -> None:
        self.rank, self.size = group.rank, group.size
        self._group, self._life = group, life

    def sum(self, partial: torch.Tensor) -> torch.Tensor:
        self._life.computing(is_alone=False)
        whole = self._group.sum(partial)
        self._life.computing(is_alone=True)
        return whole

    def gather(self, part: torch.Tensor) -> list[torch.Tensor] | None:
        self._life.computing(is_alone=False)
        parts = self._group.gather(part)
        self._life.computing(is_alone=True)
        return parts

    def least(self, number: int) -> int:
        return self._group.least(number)


def _serve_steps(runner: ModelRunner, pipes: Pipes, life: _Life) -> None:
    """Until the pipe is closed."""
    while True:
        life.computing(is_alone=False)
        try:
            message: Message = pipes.steps.recv()
        except (EOFError, OSError):
            return
        life.computing(is_alone=True)
        match message:
            case Step(plan, chosen):
                runner.follow(plan, chosen)
            case Remove(key):
                runner.remove(key)
                pipes.steps.send(key)


def _serve_loads(runner: ModelRunner, pipes: Pipes, device: torch.device) -> None:
    """Until the pipe is closed. What goes wrong with an adapter is said, and never ends the rank."""
    device_at(device).use_in_thread()
    loaded: dict[int, HostAdapter] = {}
    last: Message = None
    while True:
        try:
            message: Message = pipes.loads.recv()
            if isinstance(message, Abandon):
                _drop(runner, loaded, message.number)
                if isinstance(last, Install) and last.number == message.number:
                    runner.remove(last.key)
            elif not isinstance(message, Whole):
                last = message
                pipes.loads.send(_answer(runner, pipes, message, loaded))
        except (EOFError, OSError):
            return


def _answer(runner: ModelRunner, pipes: Pipes, message: Message, loaded: dict[int, HostAdapter]) -> Done | Failed:
    try:
        match message:
            case Settle(_, plan):
                runner.settle(plan)
            case Load(number, plan, dropped):
                for one in dropped:
                    _drop(runner, loaded, one)
                loaded[number] = runner.load_slab(plan, _total(pipes, number))
            case Install(_, key, pages, of):
                runner.install(key, pages, loaded[of])
    except AdapterError as error:
        return Failed(message.number, error.reason, error.message)
    except MemoryError as error:
        return Failed(message.number, Reason.OUT_OF_MEMORY, f"no memory for the adapter: {error}")
    except Exception as error:
        logger.exception("an adapter could not be loaded")
        return Failed(message.number, Reason.LOAD_FAILED, f"{type(error).__name__}: {error}")
    return Done(message.number)


def _drop(runner: ModelRunner, loaded: dict[int, HostAdapter], number: int) -> None:
    one = loaded.pop(number, None)
    if one is not None:
        runner.drop_slab(one)


def _total(pipes: Pipes, number: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what sums a tensor over all ranks, by way of the first one."""

    def total(partial: torch.Tensor) -> torch.Tensor:
        pipes.loads.send(Partial(number, partial.numpy()))
        answer: Message = pipes.loads.recv()
        if isinstance(answer, Whole) and answer.number == number:
            return torch.from_numpy(answer.values)
        raise AdapterError(Reason.LOAD_FAILED, "another rank failed")

    return total
