"""Triton's interpreter, made honest enough to test kernels with.

Beside what Triton 3.9 does: products and rounding of bfloat16 as the hardware does them, an error where anything else is
computed in bfloat16 (the interpreter would compute with the bits), products of float32 that are rounded where a kernel
allows it, numbers that overflow without a warning, poison in masked lanes without `other`, hints of alignment that are
looked at. While `watching`, bounds of every access, bytes by tensor, races between programs, programs in any order, and how many
loads a program waits for one after the other. Of launches that begin before the one ahead of them is done: that each program waits, and
before it does stores nothing and reads nothing that others may still write.

Import this before a module with kernels, in a process that had TRITON_INTERPRET when it imported Triton.
"""

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton import knobs
from triton.language.extra import cuda
from triton.runtime import interpreter

assert knobs.runtime.interpret, "TRITON_INTERPRET=1 must be set before Triton is imported"
_Builder = interpreter.InterpreterBuilder
_CHANGED = (
    "create_dot", "binary_op", "ternary_op", "unary_op", "cast_impl", "create_fp_to_fp", "create_masked_load",
    "create_masked_store", "set_grid_idx",
)  # fmt: skip
_plain: dict[str, Callable[..., Any]] = {name: getattr(_Builder, name) for name in _CHANGED}


_BITS = np.dtype(np.uint16)
"""What bfloat16 is kept as."""


def _float32_of(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _rounded(values: np.ndarray) -> np.ndarray:
    """Bits of bfloat16, to the nearest even."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return tensor.bfloat16().view(torch.uint16).numpy().reshape(values.shape)


def _is_bfloat16(handle: Any) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _dot(_: Any, a: Any, b: Any, d: Any, precision: Any, _imprecise: Any) -> Any:
    left, right = (_float32_of(one.data) if _is_bfloat16(one) else one.data for one in (a, b))
    if a.dtype.scalar == tl.float32 and precision == interpreter._ir.INPUT_PRECISION.TF32:
        left, right = interpreter._round_f32_to_tf32(left), interpreter._round_f32_to_tf32(right)
    if left.dtype == np.float16:
        left, right = left.astype(np.float32), right.astype(np.float32)
    product = np.matmul(left, right, dtype=np.float32)
    return interpreter.TensorHandle(product.astype(d.data.dtype) + d.data, d.dtype.scalar)


def _cast(builder: Any, source: Any, to: Any) -> Any:
    if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
        return interpreter.TensorHandle(_rounded(source.data), tl.bfloat16)
    if source.dtype.scalar == tl.bfloat16 and to.scalar not in {tl.float32, tl.bfloat16}:
        source = interpreter.TensorHandle(_float32_of(source.data), tl.float32)
    return _plain["cast_impl"](builder, source, to)


def _cast_floats(builder: Any, source: Any, to: Any, mode: Any) -> Any:
    if {source.dtype.scalar, to.scalar} == {tl.float32, tl.bfloat16}:
        return _cast(builder, source, to)
    return _plain["create_fp_to_fp"](builder, source, to, mode)


def _refusing_bfloat16(name: str) -> Callable[..., Any]:
    plain = _plain[name]

    def operation(builder: Any, *args: Any) -> Any:
        for one in args:
            if isinstance(one, interpreter.TensorHandle) and one.data.dtype == _BITS and _is_bfloat16(one):
                raise TypeError("arithmetic on bfloat16: convert to float32 first")
        return plain(builder, *args)

    return operation


@dataclass
class Traffic:
    """What a launch did to one tensor."""

    name: str
    begin: int
    width: int
    seen: np.ndarray
    """By element: whether it was read."""
    writer: np.ndarray
    """By element: the number of the program that wrote it, -1 for none."""

    @property
    def read(self) -> int:
        """Bytes, each counted once: what memory must deliver."""
        return int(self.seen.sum()) * self.width

    @property
    def written(self) -> int:
        return int((self.writer >= 0).sum()) * self.width


@dataclass
class Watch:
    """Accesses of one launch; `order`: the seed of the order of its programs."""

    tensors: dict[str, Traffic] = field(default_factory=dict)
    num_programs: int = 0
    order: int | None = None
    rounds: int = 0
    """Loads that a program waits for one after the other, at most: each needs what the one before it said."""
    begins_early: bool = False
    """Whether the launch may begin before the one ahead of it is done."""
    unfinished: Mapping[int, int] = field(default_factory=dict)
    """Ends by beginnings of memory that launches may still write when this one begins."""
    has_waited: bool = True
    """The program, for what was launched before."""
    decided: int = 0
    """Of the program: the round that it had to wait for before it could go on where it branched last."""

    def load(self, pointers: np.ndarray, mask: np.ndarray, width: int) -> None:
        for one, at in self._split(pointers, mask, width):
            self._check_writers(one, at, "reads what another program writes")
            if not self.has_waited:
                self._check_unfinished(one, at)
            one.seen[at] = True

    def store(self, pointers: np.ndarray, mask: np.ndarray, width: int) -> None:
        if not self.has_waited:
            raise RuntimeError("a program stores before it has waited")
        for one, at in self._split(pointers, mask, width):
            if len(np.unique(at)) != len(at):
                raise RuntimeError(f"race: a program writes an element of {one.name} twice")
            self._check_writers(one, at, "writes what another program writes")
            one.writer[at] = self.num_programs

    def begin_program(self) -> None:
        """See the next program begin."""
        self.end_program()
        self.num_programs += 1
        self.decided, self.has_waited = 0, not self.begins_early

    def end_program(self) -> None:
        """See the last one end: a launch that is done has to say that all before it are."""
        if not self.has_waited:
            raise RuntimeError("a program ends that has not waited")

    def launch_dependents(self) -> None:
        """See a program let the next launch begin."""
        if not self.has_waited:
            raise RuntimeError("a program lets others begin before it has waited")

    def _check_unfinished(self, one: Traffic, at: np.ndarray) -> None:
        if at.size:
            begins = one.begin + at * one.width
            for begin, end in self.unfinished.items():
                if ((begins >= begin) & (begins < end)).any():
                    raise RuntimeError(f"a program reads {one.name}, which may be written still, before it has waited")

    def _check_writers(self, one: Traffic, at: np.ndarray, what: str) -> None:
        others = one.writer[at]
        if ((others >= 0) & (others != self.num_programs)).any():
            raise RuntimeError(f"race: a program {what}, in {one.name}")

    def _split(self, pointers: np.ndarray, mask: np.ndarray, width: int) -> Iterator[tuple[Traffic, np.ndarray]]:
        shape = np.broadcast_shapes(pointers.shape, mask.shape)
        wanted = np.broadcast_to(pointers, shape)[np.broadcast_to(mask, shape)]
        left = len(wanted)
        for one in self.tensors.values():
            mine = (wanted >= one.begin) & (wanted < one.begin + one.seen.size * one.width)
            if mine.any():
                assert width == one.width, f"{one.name} has elements of {one.width} bytes, accessed as {width}"
                left -= int(mine.sum())
                yield one, ((wanted[mine] - one.begin) // one.width).astype(np.int64)
        if left:
            raise IndexError(f"{left} accesses lie in no known tensor")


_watch: list[Watch] = []


def _round_of(*values: Any) -> int:
    """The round after which the last of some values is known."""
    return max(
        (_round_of(*one) if isinstance(one, list | tuple) else getattr(one, "round", 0) for one in values), default=0
    )


def _tracing(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Operations say of what they return when it is known."""

    def operation(builder: Any, *args: Any, **options: Any) -> Any:
        made = plain(builder, *args, **options)
        if _watch:
            known = _round_of(args)
            for one in made if isinstance(made, list | tuple) else (made,):
                if isinstance(one, interpreter.TensorHandle):
                    one.round = max(known, getattr(one, "round", 0))
        return made

    return operation


def _decide(value: Any) -> None:
    """Note that a program goes on by what a value says."""
    if _watch:
        _watch[0].decided = max(_watch[0].decided, _round_of(value.handle))


def _load(builder: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
    kind = pointers.get_element_ty()
    dtype = interpreter._get_np_dtype(kind)
    if other is None:  # the interpreter gives zeros, the hardware anything
        poison = np.zeros(pointers.data.shape, dtype)
        poison.view(np.uint8)[...] = 1 if dtype == np.bool_ else 0xFF if kind.is_floating() else 0x7F
        other = interpreter.TensorHandle(poison, kind)
    if _watch:
        _watch[0].load(pointers.data, mask.data, dtype.itemsize)
    made = _plain["create_masked_load"](builder, pointers, mask, other, *rest)
    if _watch:
        made.round = max(_watch[0].decided, _round_of(pointers, mask)) + 1
        _watch[0].rounds = max(_watch[0].rounds, made.round)
    return made


def _store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
    if _watch:
        _watch[0].store(pointers.data, mask.data, value.data.dtype.itemsize)
    return _plain["create_masked_store"](builder, pointers, value, mask, *rest)


def _next_program(builder: Any, x: int, y: int, z: int) -> None:
    if _watch:
        _watch[0].begin_program()
        if _watch[0].order is not None:
            _, height, depth = builder.grid_dim
            place = _order(tuple(builder.grid_dim), _watch[0].order)[(x * height + y) * depth + z]
            x, y, z = place // (height * depth), place // depth % height, place % depth
    _plain["set_grid_idx"](builder, int(x), int(y), int(z))


@cache
def _order(grid: tuple[int, int, int], seed: int) -> list[int]:
    places = list(range(grid[0] * grid[1] * grid[2]))
    random.Random(seed).shuffle(places)
    return places


_plain_core = interpreter._patch_lang_core


def _patch_core(language: Any, scope: Any) -> None:
    _plain_core(language, scope)
    multiple_of = language.multiple_of

    def checked(value: Any, by: Any) -> Any:
        number = getattr(by, "value", by)
        if isinstance(value, tl.tensor) and value.handle.data.size == 1:
            assert value.handle.data.item() % number == 0, f"{value.handle.data.item()} is no multiple of {number}"
        return multiple_of(value, by)

    scope.set_attr(language, "multiple_of", checked)


_Builder.create_dot = _dot
_Builder.cast_impl, _Builder.create_fp_to_fp = _cast, _cast_floats
for _name in ("binary_op", "ternary_op", "unary_op"):
    setattr(_Builder, _name, _refusing_bfloat16(_name))
_Builder.create_masked_load, _Builder.create_masked_store = _load, _store
_Builder.set_grid_idx = _next_program
for _name, _operation in inspect.getmembers(_Builder, inspect.isfunction):
    if _name.startswith("create_") and _name not in {"create_masked_store", "create_store", "create_print"}:
        setattr(_Builder, _name, _tracing(_operation))
_plain_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor(tensor: Any, scope: Any) -> None:
    _plain_patch_tensor(tensor, scope)
    for name in ("__bool__", "__index__"):
        scope.set_attr(tensor, name, _deciding(getattr(tensor, name)))


def _deciding(plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decide(value: Any) -> Any:
        _decide(value)
        return plain(value)

    return decide


_plain_reduced = interpreter.ReduceScanOpInterface.apply


def _reduced(operation: Any, values: Any) -> Any:
    """Triton's own reductions are no operations of the builder."""
    made = _plain_reduced(operation, values)
    if _watch:
        known = max(_round_of(one.handle) for one in (values if isinstance(values, tuple) else (values,)))
        for one in made if isinstance(made, tuple) else (made,):
            one.handle.round = known
    return made


interpreter._patch_lang_tensor = _patch_tensor
interpreter.ReduceScanOpInterface.apply = _reduced
_plain_numpy_type = interpreter._get_np_dtype
_numpy_types: dict[str, np.dtype[Any]] = {}


def _numpy_type(kind: Any) -> np.dtype[Any]:
    if kind.name not in _numpy_types:
        _numpy_types[kind.name] = _plain_numpy_type(kind)
    return _numpy_types[kind.name]


_plain_block = tl.block_type.__init__
_blocks: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}


def _init_block(block: Any, element_type: Any, shape: Any) -> None:
    """A type of a block is asked for with each operation: it is checked, and named, once."""
    sizes = tuple(shape)
    if any(type(one) is not int for one in sizes):
        _plain_block(block, element_type, shape)
        return
    key = element_type.name, sizes
    made = _blocks.get(key)
    if made is None:
        _plain_block(block, element_type, shape)
        _blocks[key] = dict(block.__dict__)
    else:
        block.__dict__.update(made)


_plain_patch = interpreter._patch_lang
_patched: set[Any] = set()


def _patch_for_good(function: Any) -> interpreter._LangPatchScope:
    """Patch the language once for each function: this process has nothing but the interpreter.

    Plainly all of the language is looked through for each launch, and for each call of a function within, `tl.sum` among
    them; that took longer than what they compute.
    """
    if function not in _patched:
        _plain_patch(function)
        _patched.add(function)
    return interpreter._LangPatchScope()


_plain_call = interpreter.GridExecutor.__call__


def _wait() -> None:
    if _watch:
        _watch[0].has_waited = True


def _launch_dependents() -> None:
    if _watch:
        _watch[0].launch_dependents()


cuda.gdc_wait, cuda.gdc_launch_dependents = _wait, _launch_dependents


def _call(executor: Any, *args: Any, **options: Any) -> None:
    with np.errstate(over="ignore", invalid="ignore"):  # rows of padding hold anything, of which hardware says nothing
        _plain_call(executor, *args, **options)


interpreter.GridExecutor.__call__ = _call
interpreter._patch_lang_core = _patch_core
interpreter._patch_lang = _patch_for_good
interpreter._get_np_dtype = _numpy_type
tl.block_type.__init__ = _init_block


@contextmanager
def watching(
    order: int | None = None, *, unfinished: Mapping[int, int] | None = None, **tensors: torch.Tensor
) -> Iterator[Watch]:
    """Check and count the accesses of one launch, which may touch these tensors alone.

    `unfinished`: ends by beginnings of what may still be written when it begins; None: it begins when all before it is done.
    """
    watch = Watch(order=order, begins_early=unfinished is not None, unfinished=unfinished or {})
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        size = storage.nbytes() // tensor.element_size()
        watch.tensors[name] = Traffic(
            name, storage.data_ptr(), tensor.element_size(), np.zeros(size, bool), np.full(size, -1, np.int32)
        )
    _watch.append(watch)
    try:
        yield watch
        watch.end_program()
    finally:
        _watch.clear()
