"""The checked interpreter finds what is planted: without this, what it says of the real kernels would mean little."""

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("the interpreter is for machines without a GPU", allow_module_level=True)

import triton
import triton.language as tl
from support.checked_triton import watching
from triton.runtime.errors import InterpreterError

SIZE = 16


@triton.jit
def product(out, a, b, IEEE: tl.constexpr):
    n = tl.arange(0, 16)
    at = n[:, None] * 16 + n[None, :]
    done = tl.dot(tl.load(a + at), tl.load(b + at), input_precision="ieee" if IEEE else "tf32")
    tl.store(out + at, done.to(out.dtype.element_ty))


@triton.jit
def double(out, x, WIDE: tl.constexpr):
    at = tl.arange(0, 16)
    some = tl.load(x + at)
    if WIDE:
        some = some.to(tl.float32)
    tl.store(out + at, (some + some).to(out.dtype.element_ty))


@triton.jit
def half_masked(out, x):
    at = tl.arange(0, 16)
    tl.store(out + at, tl.load(x + at, mask=at < 8))


@triton.jit
def copy(out, x, begin, OUT_STEP: tl.constexpr, HINT: tl.constexpr):
    at = tl.arange(0, 16)
    begin = tl.load(begin)
    if HINT:
        begin = tl.multiple_of(begin, 16)
    tl.store(out + tl.program_id(0) * OUT_STEP + at, tl.load(x + begin + at))


@triton.jit
def read_the_next(out):
    program = tl.program_id(0)
    some = tl.load(out + program + 1)
    tl.store(out + program, some + 1.0)


@triton.jit
def chase(out, table, STEPS: tl.constexpr, BRANCH: tl.constexpr):
    at = tl.program_id(0)
    beside = tl.load(table + at)
    for _ in tl.static_range(STEPS):
        at = tl.load(table + at)
    if BRANCH:
        if tl.sum(at + tl.zeros((2,), tl.int32), 0) > 0:
            beside = tl.load(table + 1)
        for _ in range(beside):
            at += tl.load(table + 2)
    tl.store(out + tl.program_id(0), at + beside)


def test_products_of_bfloat16_are_those_of_its_values() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(SIZE, SIZE).bfloat16(), torch.randn(SIZE, SIZE).bfloat16()
    out = torch.empty(SIZE, SIZE)
    product[(1,)](out, a, b, IEEE=True)
    torch.testing.assert_close(out, a.float() @ b.float())


def test_bfloat16_is_rounded_to_the_nearest() -> None:
    x = 1 + torch.arange(SIZE) / 1000
    out = torch.empty(SIZE).bfloat16()
    double[(1,)](out, x, WIDE=True)
    assert out.equal((x + x).bfloat16())


def test_float32_is_exact_where_a_kernel_asks_for_it_alone() -> None:
    torch.manual_seed(0)
    a, b, exact, rounded = (torch.randn(SIZE, SIZE) for _ in range(4))
    product[(1,)](exact, a, b, IEEE=True)
    product[(1,)](rounded, a, b, IEEE=False)
    assert (exact - a @ b).abs().max() < 1e-5
    assert (rounded - a @ b).abs().max() > 1e-4


def test_arithmetic_on_bfloat16_is_an_error() -> None:
    with pytest.raises(InterpreterError, match="arithmetic on bfloat16"):
        double[(1,)](torch.empty(SIZE).bfloat16(), torch.ones(SIZE).bfloat16(), WIDE=False)


def test_what_overflows_is_infinite_without_a_warning() -> None:
    out = torch.empty(SIZE)
    double[(1,)](out, torch.full((SIZE,), 3e38), WIDE=True)
    assert out.isinf().all()


def test_what_a_mask_leaves_out_is_not_zero() -> None:
    out = torch.zeros(SIZE)
    half_masked[(1,)](out, torch.ones(SIZE))
    assert out[:8].equal(torch.ones(8))
    assert out[8:].isnan().all()


def test_an_access_out_of_bounds_is_an_error() -> None:
    out, x, begin = torch.empty(SIZE), torch.ones(SIZE), torch.tensor([1])
    with watching(out=out, x=x, begin=begin), pytest.raises(InterpreterError, match="no known tensor"):
        copy[(1,)](out, x, begin, OUT_STEP=16, HINT=False)


def test_two_programs_that_write_one_element_are_an_error() -> None:
    out, x, begin = torch.empty(2 * SIZE), torch.ones(SIZE), torch.tensor([0])
    with watching(out=out, x=x, begin=begin) as seen:
        copy[(2,)](out, x, begin, OUT_STEP=16, HINT=False)
    assert (seen.tensors["x"].read, seen.tensors["out"].written) == (4 * SIZE, 8 * SIZE)
    with watching(out=out, x=x, begin=begin), pytest.raises(InterpreterError, match="race"):
        copy[(2,)](out, x, begin, OUT_STEP=8, HINT=False)


def test_a_hint_that_is_not_true_is_an_error() -> None:
    out, x = torch.empty(SIZE), torch.ones(3 * SIZE)
    copy[(1,)](out, x, torch.tensor([16]), OUT_STEP=16, HINT=True)
    with pytest.raises(InterpreterError, match="no multiple"):
        copy[(1,)](out, x, torch.tensor([8]), OUT_STEP=16, HINT=True)


def test_another_order_finds_who_relies_on_the_order() -> None:
    out = torch.zeros(9)
    with watching(out=out):
        read_the_next[(8,)](out)
    with watching(order=1, out=out), pytest.raises(InterpreterError, match="race"):
        read_the_next[(8,)](out)


def test_loads_that_wait_for_one_another_are_counted() -> None:
    """By what they read, and by what has to be known before a program comes to them."""
    out, table = torch.zeros(4, dtype=torch.int32), torch.tensor([3, 1, 0, 2], dtype=torch.int32)
    for steps, branches, rounds in ((0, False, 1), (1, False, 1), (3, False, 3), (1, True, 3), (2, True, 4)):
        with watching(out=out, table=table) as seen:
            chase[(1,)](out, table, STEPS=steps, BRANCH=branches)
        assert seen.rounds == rounds, (steps, branches)
