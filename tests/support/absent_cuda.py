"""A CUDA device that is not there: steps are run on tensors without contents, and what they ask of the device is counted.

Tensors of the host are real, so whatever prepares a step works as it does beside a device. Tensors of the device are fake:
reading one raises, so a step whose Python depends on what the device computed fails here. What waits for the device
is written down as such: copies that are not from or to pinned memory or not asked to be asynchronous, and waiting itself.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from lorafleet_inference.device.devices import standing_in
from lorafleet_inference.device.interface import Captured, Device, DeviceBytes, Event, Graphs, Order, Stream
from lorafleet_inference.kernels.triton.launch import launching

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)


@dataclass
class Work:
    """What was asked of the device, in its order."""

    trace: list[tuple[Any, ...]] = field(default_factory=list)
    """Of each operation its name, and the shape, strides and dtype of its tensors beside its plain arguments."""
    operations: list[tuple[str, str]] = field(default_factory=list)
    """(phase, name) of those that launch something on the device, kernels of Triton among them."""
    num_views: int = 0
    """Those that launch nothing: they cost the host alone."""
    copies_in: list[int] = field(default_factory=list)
    """Bytes of each copy from the host to the device."""
    copies_out: list[int] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    """What kept the host until the device had done it."""
    num_replays: int = 0
    pinned: list[int] = field(default_factory=list)
    """Bytes of each allocation of pinned memory."""
    unpinned: list[int] = field(default_factory=list)
    """Bytes of each that was given up."""

    def by_phase(self) -> dict[str, int]:
        """Operations by phase."""
        return dict(sorted(Counter(phase for phase, _ in self.operations).items()))


@dataclass
class _Event(Event):
    device: "AbsentCuda"

    def wait(self, why: Order) -> None:
        self.device.work.waits.append(why)


@dataclass
class AbsentStream(Stream):
    device: "AbsentCuda"

    def mark(self) -> Event:
        return _Event(self.device)

    def wait(self, event: Event, why: Order) -> None: ...


@dataclass
class AbsentDevice(Device):
    """Its memory is as large as it has to be."""

    device: "AbsentCuda"
    works_beside = True

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def send(self, host: torch.Tensor) -> torch.Tensor:
        return host.to(CUDA, non_blocking=True)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def current(self) -> Stream:
        return AbsentStream(self.device)

    def stream(self) -> Stream:
        return AbsentStream(self.device)

    def on(self, stream: Stream) -> AbstractContextManager[None]:
        return nullcontext()

    def graphs(self) -> Graphs:
        return CountedGraphs(self.device)

    def use_in_thread(self) -> None: ...

    def check(self) -> None:
        self.device.work.waits.append("device")

    def release_unused(self) -> None: ...

    def bytes(self) -> DeviceBytes:
        return DeviceBytes(80 << 30, 80 << 30)

    def peak_bytes(self, compute: Callable[[], object]) -> int:
        compute()
        return 0


class AbsentCuda(TorchDispatchMode):
    """While it is open (`there`), "cuda" is a device; `work` is what was asked of it since `begin`."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()
        self._phases: list[str] = ["tables"]
        self._pinned = WeakIdKeyDictionary()
        """Storages of the host."""

    @contextmanager
    def there(self) -> Iterator[None]:
        """Make it there."""
        with self.standing(), FakeTensorMode(), self, launching(self._launch):
            yield

    def standing(self) -> AbstractContextManager[None]:
        """While this is open, its form of the interface is that of CUDA."""
        device = self.form()
        return standing_in({CUDA: device, torch.device("cuda"): device})

    def form(self) -> Device:
        """Return its form of the interface."""
        return AbsentDevice(self)

    def begin(self) -> Work:
        """Count from here on."""
        self.work = Work()
        return self.work

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """While this is open, operations are of this phase."""
        self._phases.append(name)
        try:
            yield
        finally:
            self._phases.pop()

    def enter(self, name: str) -> Callable[..., None]:
        """Return a hook that begins a phase."""
        return lambda *_: self._phases.append(name)

    def leave(self, *_: object) -> None:
        """Be a hook that ends one."""
        self._phases.pop()

    def _launch(self, kernel: Any, grid: tuple[int, ...], args: Sequence[Any], constants: Mapping[str, Any]) -> None:
        name = kernel.fn.__name__
        self.work.trace.append((name, grid, *map(_told, args), *sorted(constants.items())))
        self.work.operations.append((PHASES.get(name, name), name))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func.namespace == "prim":  # asks for a device or a layout
            return func(*args, **kwargs)
        if _is_composite(func) and func not in PINNING:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        on_device = any(isinstance(one, FakeTensor) for one in tensors)
        device = kwargs.get("device")
        to_device = device is not None and torch.device(device).type == "cuda"
        if not on_device and not to_device:
            return self._on_host(func, args, kwargs)
        if func in COPIES:
            return self._copy(func, args, kwargs)
        if any(not isinstance(one, FakeTensor) and one.dim() for one in tensors):
            raise RuntimeError(f"{func} reads a tensor of the host on the device")
        return self._compute(func, args, kwargs)

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        there, named = tree_map(_on_device, (args, kwargs))
        out = func(*there, **named)
        if self._count(func, there, named, out):
            self._ask(func, args, kwargs, out)
        return out

    def _ask(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """See an operation that the device has to do: `out` is what comes of it."""

    def _send(self, target: torch.Tensor, source: torch.Tensor, *, waits: bool) -> None:
        """See a copy between host and device. `waits`: the host goes on when it is done."""

    def _on_host(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is aten.is_pinned.default:
            return args[0].untyped_storage() in self._pinned
        pinned = bool(kwargs.pop("pin_memory", False))
        if func in PINNING:
            func, args, kwargs, pinned = aten.clone.default, args[:1], {}, True
        with unset_fake_temporarily():
            out = func(*args, **kwargs)
        if pinned:
            storage = out.untyped_storage()
            self._pinned[storage] = True
            self.work.pinned.append(storage.nbytes())
            weakref.finalize(storage, self._unpin, storage.nbytes()).atexit = False
        return out

    def _unpin(self, num_bytes: int) -> None:
        self.work.unpinned.append(num_bytes)

    def _copy(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """A copy where one side may be the host."""
        if func is aten._to_copy.default:
            source = args[0]
            device = torch.device(kwargs.get("device", source.device))
            if device.type == source.device.type:
                return self._compute(func, args, kwargs)
            dtype = kwargs.get("dtype") or source.dtype
            if device.type == "cuda":
                target = torch.empty(source.shape, dtype=dtype, device=CUDA)
            else:
                with unset_fake_temporarily():
                    target = torch.empty(source.shape, dtype=dtype)
            asynchronous = bool(kwargs.get("non_blocking", False))
        else:
            target, source = args[:2]
            if source.device.type == target.device.type or not source.dim():
                return self._compute(func, args, kwargs)
            asynchronous = bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
        is_in = target.device.type == "cuda"
        host = source if is_in else target
        if not is_in:
            with unset_fake_temporarily():
                target.fill_(1)  # some number: a token, or yes
        (self.work.copies_in if is_in else self.work.copies_out).append(source.numel() * source.element_size())
        self.work.trace.append(("copy in" if is_in else "copy out", tuple(source.shape), source.dtype))
        waits = not asynchronous or host.untyped_storage() not in self._pinned
        self._send(target, source, waits=waits)
        if waits:
            self.work.waits.append(f"copy {'in' if is_in else 'out'} of {tuple(source.shape)}")
        return target

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        """Count an operation, and return whether the device has to do anything."""
        given, made = (
            [one for one in tree_leaves(some) if isinstance(one, torch.Tensor)] for some in ((args, kwargs), out)
        )
        self.work.trace.append((str(func), *map(_told, tree_leaves((args, kwargs, out)))))
        storages = {one.untyped_storage()._cdata for one in given}
        writes = func._schema.is_mutable or any(one.untyped_storage()._cdata not in storages for one in made)
        if not writes:
            self.work.num_views += 1
        elif "empty" not in (name := func._schema.name.removeprefix("aten::")):
            self.work.operations.append(("products" if name in PRODUCTS else self._phases[-1], name))
            return True
        return False


PINNING = {aten.is_pinned.default, aten.pin_memory.default, aten._pin_memory.default}
COPIES = {aten._to_copy.default, aten.copy_.default}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "matmul"}
PHASES = {
    "record": "tables", "both": "LoRA", "shrink": "LoRA", "expand": "LoRA", "decode": "attention", "merge": "attention",
    "prefill": "attention", "write": "attention", "choose": "sampling", "add_norm": "norms", "rotate_write": "rotary",
    "rotate": "rotary", "gate": "MLP", "affine": "LoRA", "embed": "LoRA", "side_shrink": "LoRA", "side_expand": "LoRA",
}  # fmt: skip
"""Of kernels."""


@cache
def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _told(one: Any) -> Any:
    if isinstance(one, torch.Tensor):
        return tuple(one.shape), one.stride(), one.dtype, one.storage_offset() * one.element_size() % 16
    return one


def _on_device(one: Any) -> Any:
    """A number in a tensor of the host goes with the operation, as it does on a device."""
    if isinstance(one, torch.Tensor) and not isinstance(one, FakeTensor):
        return torch.empty((), dtype=one.dtype, device=CUDA)
    return one


@dataclass
class CountedGraphs(Graphs):
    """Graphs whose nodes are counted when they are captured; a replay asks for all of them at once."""

    device: AbsentCuda
    nodes: list[Work] = field(default_factory=list)

    def capture(self, compute: Callable[[], torch.Tensor]) -> Captured:
        before = self.device.work
        nodes = self.device.begin()
        output = compute()
        self.device.work = before
        self.nodes.append(nodes)
        return _Counted(output, self.device, nodes)


@dataclass
class _Counted(Captured):
    output: torch.Tensor
    device: AbsentCuda
    nodes: Work

    def replay(self) -> None:
        self.device.work.num_replays += 1
