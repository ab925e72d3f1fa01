"""Raw memory for Numba kernels.

Kernels get one array of int64: sizes, and addresses of tensors. Arrays of Numba would be slower here: each slice counts
references.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _pointer(element: types.Type) -> Any:
    @intrinsic
    def pointer(_typing: Any, _address: Any) -> Any:
        signature = types.CPointer(element)(types.int64)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return signature, generate

    return pointer


int64_at = _pointer(types.int64)
int32_at = _pointer(types.int32)
float32_at = _pointer(types.float32)
bfloat16_at = _pointer(types.uint16)
"""Elements of a uint16 pointer are bfloat16; read them with `load`."""
fp8_at = _pointer(types.uint8)
"""Elements of a uint8 pointer are codes of `fp8_pages.py`; `load` gives their numbers without the row's factor."""


@intrinsic
def take_next(_typing: Any, _pointer: Any) -> Any:
    """Add one to an int64 that threads share; return what it was."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", arguments[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.CPointer(types.int64)), generate


@intrinsic
def prefetch(_typing: Any, _address: Any) -> Any:
    """Ask for the cache line at an address, into the second-level cache."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        reading, second_level, data = word(0), word(2), word(1)
        builder.call(function, [builder.inttoptr(arguments[0], byte), reading, second_level, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def load(_typing: Any, pointer: Any, index: Any) -> Any:
    """Return an element of a pointer to float32, bfloat16 or codes of 8 bits as float32."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        value = builder.load(builder.gep(arguments[0], [arguments[1]]))
        if pointer.dtype is types.float32:
            return value
        word = ir.IntType(32)
        if pointer.dtype is types.uint8:  # a float32 that is 2 ** 112 times smaller
            bits = builder.and_(builder.shl(builder.sext(value, word), word(20)), word(-0x78100000))
            return builder.fmul(builder.bitcast(bits, ir.FloatType()), ir.Constant(ir.FloatType(), 2.0**112))
        return builder.bitcast(builder.shl(builder.zext(value, word), word(16)), ir.FloatType())

    return types.float32(pointer, index), generate


@intrinsic
def bits_of(_typing: Any, _value: Any) -> Any:
    """Return the bits of a float32, as int64."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.bitcast(arguments[0], ir.IntType(32)), ir.IntType(64))

    return types.int64(types.float32), generate


@intrinsic
def power_of_two(_typing: Any, _exponent: Any) -> Any:
    """Return 2 to an int32 of -126 to 127, as float32."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.add(arguments[0], word(127)), word(23)), ir.FloatType())

    return types.float32(types.int32), generate
