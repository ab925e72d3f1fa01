"""Loops over explicit vectors for Numba kernels: sums and multiples of several rows at once.

What LLVM makes of a plain loop is vectors too, but it neither keeps a tile of sums in registers nor lets a loop ask for memory
ahead. Here both are said. Addresses are int64, everything is float32; what is left of a width behind whole vectors is the
caller's.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
"""Of a vector; where the processor has others, LLVM makes these of them."""
LINE = 64
"""Bytes that memory gives at once."""
ROWS = 4
"""Rows that are read together."""
TOKENS = 3
"""Tokens of a tile: of as many by ROWS, the sums and what they are made of fit sixteen registers."""
TILE = 32
"""Columns of a tile of y."""
_WORD, _FLOAT = ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_FOUR = ir.VectorType(_FLOAT, ROWS)
_VECTOR_BYTES = 4 * LANES
_PER_LINE = LINE // _VECTOR_BYTES
_FUSE = ("contract",)
"""A product and a sum may be rounded once."""
_ROWS_TYPE = types.UniTuple(types.int64, ROWS)


def _at(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    moved = builder.add(address, _WORD(offset)) if offset else address
    return builder.inttoptr(moved, kind.as_pointer())


def _vector(builder: Any, address: Any, offset: int = 0) -> Any:
    return builder.load(_at(builder, address, offset, _VECTOR), align=4)


def _put(builder: Any, value: Any, address: Any, offset: int = 0) -> None:
    builder.store(value, _at(builder, address, offset, _VECTOR), align=4)


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c"""
    return builder.fadd(builder.fmul(a, b, flags=_FUSE), c, flags=_FUSE)


def _spread(builder: Any, value: Any) -> Any:
    """Return a number in all lanes."""
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(undefined, value, ir.IntType(32)(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _picked(builder: Any, a: Any, b: Any, lanes: Sequence[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes)))


def _pairs(builder: Any, a: Any, b: Any) -> Any:
    """Return the sums of neighbouring lanes, of a and b in turn by halves."""
    even, odd = (0, 2, 8, 10, 4, 6, 12, 14), (1, 3, 9, 11, 5, 7, 13, 15)
    return builder.fadd(_picked(builder, a, b, even), _picked(builder, a, b, odd))


def _four_sums(builder: Any, vectors: Sequence[Any]) -> Any:
    """Return the sums over the lanes of four vectors, as a vector of four."""
    a, b, c, d = vectors
    halves = _pairs(builder, _pairs(builder, a, b), _pairs(builder, c, d))
    low, high = (_picked(builder, halves, halves, range(begin, begin + ROWS)) for begin in (0, LANES - ROWS))
    return builder.fadd(low, high)


def _prefetch(builder: Any, address: Any) -> None:
    byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    reading, second_level, data = word(0), word(2), word(1)
    builder.call(function, [builder.inttoptr(address, byte), reading, second_level, data])


def _loop(builder: Any, count: Any, start: Sequence[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """Have `body(i, values)` make the next values from i = 0 to before count, which may be 0; return the last ones."""
    before = builder.block
    loop, end = builder.append_basic_block("loop"), builder.append_basic_block("end")
    builder.cbranch(builder.icmp_signed(">", count, _WORD(0)), loop, end)
    builder.position_at_end(loop)
    index = builder.phi(_WORD)
    index.add_incoming(_WORD(0), before)
    values = [builder.phi(value.type) for value in start]
    made = body(index, list(values))
    following = builder.add(index, _WORD(1))
    last = builder.block
    index.add_incoming(following, last)
    for value, first, new in zip(values, start, made, strict=True):
        value.add_incoming(first, before)
        value.add_incoming(new, last)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, end)
    builder.position_at_end(end)
    found = []
    for first, new in zip(start, made, strict=True):
        value = builder.phi(first.type)
        value.add_incoming(first, before)
        value.add_incoming(new, last)
        found.append(value)
    return found


@intrinsic
def dot_rows(_typing: Any, _x: Any, _rows: Any, _ahead: Any, _lines: Any) -> Any:
    """Return x . row of ROWS rows, over so many lines of memory; meanwhile the lines at `ahead` are asked for."""
    signature = types.UniTuple(types.float32, ROWS)(types.int64, _ROWS_TYPE, _ROWS_TYPE, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, rows, ahead, lines = arguments
        each = [(builder.extract_value(rows, r), builder.extract_value(ahead, r)) for r in range(ROWS)]

        def body(index: Any, sums: list[Any]) -> list[Any]:
            offset = builder.mul(index, _WORD(LINE))
            here = builder.add(x, offset)
            xs = [_vector(builder, here, part * _VECTOR_BYTES) for part in range(_PER_LINE)]
            for r, (row, next_row) in enumerate(each):
                _prefetch(builder, builder.add(next_row, offset))
                at = builder.add(row, offset)
                for part in range(_PER_LINE):
                    values = _vector(builder, at, part * _VECTOR_BYTES)
                    sums[_PER_LINE * r + part] = _fused(builder, xs[part], values, sums[_PER_LINE * r + part])
            return sums

        zeros = [ir.Constant(_VECTOR, [0.0] * LANES)] * (ROWS * _PER_LINE)
        sums = _loop(builder, lines, zeros, body)
        wholes = []
        for r in range(ROWS):
            whole = sums[_PER_LINE * r]
            for part in range(1, _PER_LINE):
                whole = builder.fadd(whole, sums[_PER_LINE * r + part])
            wholes.append(whole)
        four = _four_sums(builder, wholes)
        found = [builder.extract_element(four, ir.IntType(32)(r)) for r in range(ROWS)]
        return context.make_tuple(builder, signature.return_type, found)

    return signature, generate


@intrinsic
def add_rows(_typing: Any, _y: Any, _rows: Any, _ahead: Any, _factors: Any, _lines: Any) -> Any:
    """Add to y the multiples of ROWS rows, over so many lines of memory; meanwhile the lines at `ahead` are asked for."""
    signature = types.void(types.int64, _ROWS_TYPE, _ROWS_TYPE, types.UniTuple(types.float32, ROWS), types.int64)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        y, rows, ahead, factors, lines = arguments
        each = [
            (
                builder.extract_value(rows, r),
                builder.extract_value(ahead, r),
                _spread(builder, builder.extract_value(factors, r)),
            )
            for r in range(ROWS)
        ]

        def body(index: Any, _: list[Any]) -> list[Any]:
            offset = builder.mul(index, _WORD(LINE))
            here = builder.add(y, offset)
            ys = [_vector(builder, here, part * _VECTOR_BYTES) for part in range(_PER_LINE)]
            for row, next_row, factor in each:
                _prefetch(builder, builder.add(next_row, offset))
                at = builder.add(row, offset)
                for part in range(_PER_LINE):
                    ys[part] = _fused(builder, factor, _vector(builder, at, part * _VECTOR_BYTES), ys[part])
            for part in range(_PER_LINE):
                _put(builder, ys[part], here, part * _VECTOR_BYTES)
            return []

        _loop(builder, lines, [], body)
        return context.get_dummy_value()

    return signature, generate


def _dots(num_tokens: int) -> Any:
    @intrinsic
    def dots(
        _typing: Any, _x: Any, _x_bytes: Any, _ahead: Any, _rows: Any, _vectors: Any, _low: Any, _low_bytes: Any
    ) -> Any:
        """Write to low [tokens, ROWS] the sums x . row of some tokens, over so many vectors.

        Meanwhile as many tokens at `ahead` are asked for.
        """
        signature = types.void(types.int64, types.int64, types.int64, _ROWS_TYPE, types.int64, types.int64, types.int64)

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            x, x_bytes, ahead, rows, vectors, low, low_bytes = arguments
            each = [builder.extract_value(rows, r) for r in range(ROWS)]
            tokens, following = [x], [ahead]
            for _ in range(1, num_tokens):
                tokens.append(builder.add(tokens[-1], x_bytes))
                following.append(builder.add(following[-1], x_bytes))

            def body(index: Any, sums: list[Any]) -> list[Any]:
                offset = builder.mul(index, _WORD(_VECTOR_BYTES))
                values = [_vector(builder, builder.add(row, offset)) for row in each]
                for t, token in enumerate(tokens):
                    _prefetch(builder, builder.add(following[t], offset))
                    own = _vector(builder, builder.add(token, offset))
                    for r in range(ROWS):
                        sums[ROWS * t + r] = _fused(builder, own, values[r], sums[ROWS * t + r])
                return sums

            sums = _loop(builder, vectors, [ir.Constant(_VECTOR, [0.0] * LANES)] * (ROWS * num_tokens), body)
            for t in range(num_tokens):
                found = _four_sums(builder, sums[ROWS * t : ROWS * (t + 1)])
                builder.store(found, _at(builder, low, 0, _FOUR), align=4)
                low = builder.add(low, low_bytes)
            return context.get_dummy_value()

        return signature, generate

    return dots


def _adds(num_tokens: int, num_vectors: int) -> Any:
    @intrinsic
    def adds(
        _typing: Any, _y: Any, _y_bytes: Any, _base: Any, _rows: Any, _rank: Any, _low: Any, _low_bytes: Any
    ) -> Any:
        """Add to a tile of y the products of low [tokens, rank] and as many rows; row r is at base + 4 * rows[r]."""
        signature = types.void(*[types.int64] * 7)

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            y, y_bytes, base, rows, rank, low, low_bytes = arguments
            ys, lows = [y], [low]
            for _ in range(1, num_tokens):
                ys.append(builder.add(ys[-1], y_bytes))
                lows.append(builder.add(lows[-1], low_bytes))

            def body(index: Any, sums: list[Any]) -> list[Any]:
                row = builder.load(_at(builder, builder.add(rows, builder.mul(index, _WORD(8))), 0, _WORD))
                at = builder.add(base, builder.mul(row, _WORD(4)))
                values = [_vector(builder, at, part * _VECTOR_BYTES) for part in range(num_vectors)]
                for t in range(num_tokens):
                    place = builder.add(lows[t], builder.mul(index, _WORD(4)))
                    factor = _spread(builder, builder.load(_at(builder, place, 0, _FLOAT), align=4))
                    for part in range(num_vectors):
                        number = num_vectors * t + part
                        sums[number] = _fused(builder, factor, values[part], sums[number])
                return sums

            parts = [(t, part) for t in range(num_tokens) for part in range(num_vectors)]
            start = [_vector(builder, ys[t], part * _VECTOR_BYTES) for t, part in parts]
            for (t, part), value in zip(parts, _loop(builder, rank, start, body), strict=True):
                _put(builder, value, ys[t], part * _VECTOR_BYTES)
            return context.get_dummy_value()

        return signature, generate

    return adds


dots_of_three, dots_of_one = _dots(TOKENS), _dots(1)
add_tile_of_three, add_tile_of_one = _adds(TOKENS, TILE // LANES), _adds(1, TILE // LANES)
