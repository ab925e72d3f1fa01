"""A CUDA device without CUDA: work is queued in streams and done in a random order among those that streams and events allow.

Tensors of the device have contents, in memory of the host that only queued work touches. What the host reads before it was copied,
and what is copied from memory that was filled again before, is wrong as it would be on a device; memory that is freed is
used again by whatever comes next in the stream that it was made on. What holds for many seeds holds for a device's orders, as far
as one operation is one indivisible piece.
"""

import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from support.absent_cuda import AbsentCuda, AbsentDevice
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from lorafleet_inference.device.graphs import OrderedGraphs
from lorafleet_inference.device.interface import Captured, Device, Event, Graphs, Order, Stream
from lorafleet_inference.kernels.triton.launch import launching

Piece = Callable[[], bool]
"""Done when it returns True; else it has to wait."""


@dataclass
class SimulatedStream(Stream):
    """A queue."""

    simulated: "SimulatedCuda"
    queue: deque[Piece] = field(default_factory=deque)

    def mark(self) -> Event:
        event = _Event(self.simulated)
        self.queue.append(event.pass_by)
        return event

    def wait(self, event: Event, why: Order) -> None:
        assert isinstance(event, _Event)
        self.simulated.waited.add(why)
        if why is not self.simulated.without:
            self.queue.append(lambda: event.is_done)


@dataclass
class _Event(Event):
    simulated: "SimulatedCuda"
    is_done: bool = False

    def pass_by(self) -> bool:
        self.is_done = True
        return True

    def wait(self, why: Order) -> None:
        self.simulated.waited.add(why)
        if why is not self.simulated.without:
            self.simulated.run_until(lambda: self.is_done)


@dataclass
class _Form(AbsentDevice):
    """The device's form of the interface."""

    device: "SimulatedCuda"

    def current(self) -> Stream:
        return self.device.current()

    def stream(self) -> Stream:
        return self.device.stream()

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before = self.device.current()
        self.device.here.stream = stream
        try:
            yield
        finally:
            self.device.here.stream = before

    def graphs(self) -> Graphs:
        return OrderedGraphs(self, self.device.record)

    def check(self) -> None:
        self.device.check()

    def peak_bytes(self, compute: Callable[[], object]) -> int:
        self.check()
        before = self.device.peak_bytes = self.device.num_bytes
        compute()
        self.check()
        self.device.measured.append(self.device.peak_bytes - before)
        return self.device.measured[-1]


class SimulatedCuda(AbsentCuda):
    """While it is open (`there`), "cuda" is a device whose orders `seed` chooses. `without`: a wait that is left out."""

    def __init__(self, seed: int, without: Order | None = None, haste: float | None = None) -> None:
        """`haste`: how soon it does what it is asked, from 0 for when somebody waits to 1 for at once; None: the seed says."""
        super().__init__()
        self.without = without
        self.waited: set[Order] = set()
        """What somebody waited for so far."""
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._real: dict[int, torch.UntypedStorage] = {}
        """By the storage of a tensor of the device, where its contents are."""
        self.peak_bytes = 0
        """The most that `num_bytes` was."""
        self.measured: list[int] = []
        """What somebody asked of a computation."""
        self._streams: list[SimulatedStream] = []
        self._capturing: list[Callable[[], None]] | None = None
        self._fake = FakeTensorMode()
        self.here = threading.local()
        self._steps = self.stream()
        self._haste = self._random.choice([0.0, 0.1, 0.5, 0.9, 0.98]) if haste is None else haste
        self._fickleness = self._random.choice([0.0, 0.01, 0.3])
        """How often it turns from one stream to another while it could go on with the first."""

    def form(self) -> Device:
        """As `AbsentCuda`."""
        return _Form(self)

    @contextmanager
    def in_thread(self) -> Iterator[None]:
        """Let another thread use the device, while the one that opened it rests."""
        with self._fake, self:
            yield

    def stream(self) -> SimulatedStream:
        """Return a new stream."""
        stream = SimulatedStream(self)
        self._streams.append(stream)
        self._streams.sort(key=lambda _: self._random.random())
        return stream

    def current(self) -> SimulatedStream:
        """Return the stream of the calling thread."""
        found: SimulatedStream = getattr(self.here, "stream", self._steps)
        return found

    def run_until(self, is_reached: Callable[[], bool]) -> None:
        """Do queued work until something is reached, or all of it."""
        with self._lock:
            while not is_reached() and self._do_one():
                pass

    def check(self) -> None:
        """Do all that is queued."""
        self.run_until(lambda: False)

    @property
    def num_bytes(self) -> int:
        """Of its memory that tensors have."""
        return sum(one.nbytes() for one in self._real.values())

    def contents(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what a tensor of the device has now, on the host."""
        real: torch.Tensor = self._contents(tensor)
        with _disable_current_modes():
            return real.clone()

    def record(self, compute: Callable[[], torch.Tensor], _stream: Stream) -> Captured:
        """Capture what a computation asks for."""
        assert self._capturing is None
        calls: list[Callable[[], None]] = []
        self._capturing = calls
        try:
            output = compute()
        finally:
            self._capturing = None
        return _Replayed(output, self, calls)

    def enqueue(self, work: Callable[[], None]) -> None:
        """Have something done in the current stream."""

        def now() -> bool:
            work()
            return True

        if self._capturing is not None:
            self._capturing.append(work)
            return
        with self._lock:
            self.current().queue.append(now)
            while self._random.random() < self._haste and self._do_one():
                pass

    def _do_one(self) -> bool:
        """Do one piece of a stream that can go on; streams that come first in their order are mostly chosen first."""
        if self._random.random() < self._fickleness / 10:
            self._random.shuffle(self._streams)
        ready = [one for one in self._streams if one.queue]
        if self._random.random() < self._fickleness:
            self._random.shuffle(ready)
        for one in ready:
            with _disable_current_modes(), torch.inference_mode(), np.errstate(all="ignore"):
                if one.queue[0]():
                    one.queue.popleft()
                    return True
        assert not ready, "every stream waits"
        return False

    def _contents(self, one: Any) -> Any:
        """Return where the contents of a tensor of the device are, and anything else as it is."""
        if isinstance(one, torch.device):
            return torch.device("cpu")
        if not isinstance(one, FakeTensor):
            return one
        storage = one.untyped_storage()
        key = storage._cdata
        with _disable_current_modes():
            if key not in self._real:
                real = torch.UntypedStorage(storage.nbytes())
                self._real[key] = real
                self.peak_bytes = max(self.peak_bytes, self.num_bytes)
                is_float = one.is_floating_point()
                self._spoil(real, one.dtype, is_float=is_float)
                weakref.finalize(
                    storage, self._freed, key, one.dtype, self.current(), is_kept=self._capturing is not None
                ).atexit = False
            with torch.inference_mode():
                view = torch.empty(0, dtype=one.dtype)
                return view.set_(self._real[key], one.storage_offset(), tuple(one.shape), one.stride())

    def _spoil(self, real: torch.UntypedStorage, dtype: torch.dtype, *, is_float: bool) -> None:
        """Leave what no computation may use: as numbers, none; as places, some that are there."""
        size = real.nbytes() // dtype.itemsize
        with torch.inference_mode():
            torch.empty(0, dtype=dtype).set_(real, 0, (size,), (1,)).fill_(float("nan") if is_float else 0)

    def _freed(self, key: int, dtype: torch.dtype, stream: SimulatedStream, *, is_kept: bool) -> None:
        real = self._real.pop(key)
        if is_kept:  # a graph keeps its memory
            return

        def spoil() -> bool:
            self._spoil(real, dtype, is_float=dtype.is_floating_point)
            return True

        stream.queue.append(spoil)

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        """Only say whether the device has to do anything."""
        if func._schema.is_mutable:
            return True
        given, made = (
            {one.untyped_storage()._cdata for one in tree_leaves(some) if isinstance(one, torch.Tensor)}
            for some in ((args, kwargs), out)
        )
        return not made <= given and "empty" not in func._schema.name

    def _ask(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        args, kwargs = tree_map(self._contents, (args, dict(kwargs)))
        kwargs.pop("pin_memory", None)
        places = [self._contents(one) for one in tree_leaves(out) if isinstance(one, torch.Tensor)]

        def work() -> None:
            made = [one for one in tree_leaves(func(*args, **kwargs)) if isinstance(one, torch.Tensor)]
            for place, one in zip(places, made, strict=True):
                if place.untyped_storage().data_ptr() != one.untyped_storage().data_ptr():
                    place.copy_(one)

        self.enqueue(work)

    def _send(self, target: torch.Tensor, source: torch.Tensor, *, waits: bool) -> None:
        assert self._capturing is None, "a graph copies nothing from or to the host"
        if waits and not isinstance(source, FakeTensor):
            with _disable_current_modes():
                source = source.clone()  # the driver takes it before the host goes on
        there, here = self._contents(target), self._contents(source)
        self.enqueue(lambda: there.copy_(here))
        if waits and isinstance(source, FakeTensor):
            event = _Event(self)
            self.current().queue.append(event.pass_by)
            self.run_until(lambda: event.is_done)

    def _launch(self, kernel: Any, grid: tuple[int, ...], args: Sequence[Any], constants: Mapping[str, Any]) -> None:
        super()._launch(kernel, grid, args, constants)
        args = [self._contents(one) for one in args]
        self.enqueue(lambda: kernel[grid](*args, **constants))

    @contextmanager
    def there(self) -> Iterator[None]:
        """Make it there."""
        with self.standing(), self._fake, self, launching(self._launch):
            yield


@dataclass
class _Replayed(Captured):
    output: torch.Tensor
    simulated: SimulatedCuda
    calls: Sequence[Callable[[], None]]

    def replay(self) -> None:
        for call in self.calls:
            self.simulated.enqueue(call)
