"""Norm with residual, gate, and rotary with the write of KV equal plain torch, and read and write each byte once."""

from dataclasses import dataclass, replace

import pytest
import torch
from support.triton_launches import Launches, launches

from lorafleet_inference.kernels import fp8_pages
from lorafleet_inference.kernels.layer_ops import Activation, HeadSpec, TorchLayerOps
from lorafleet_inference.kernels.triton.layer_ops import TritonLayerOps, rotate_write

TRITON, TORCH = TritonLayerOps(), TorchLayerOps()
DTYPES = [torch.float32, torch.bfloat16]
BLOCK, NUM_BLOCKS = 16, 4
EPS = 1e-3


def close(told: torch.Tensor, right: torch.Tensor) -> None:
    """Of bfloat16 the last bit may differ: sums have other orders."""
    tolerance = 1e-2 if told.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(told.cpu(), right.cpu(), rtol=tolerance, atol=tolerance)


def random(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(*shape).to(dtype).to(device)


def padded(rows: torch.Tensor) -> torch.Tensor:
    """The same rows with NaN between them."""
    wide = torch.full((rows.shape[0], rows.shape[1] + 16), float("nan"), dtype=rows.dtype, device=rows.device)
    wide[:, : rows.shape[1]] = rows
    return wide[:, : rows.shape[1]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("unit_offset", [False, True])
@pytest.mark.parametrize("width", [48, 64])
def test_norm_with_residual(device: torch.device, dtype: torch.dtype, unit_offset: bool, width: int) -> None:
    torch.manual_seed(0)
    x, residual, weight = (random(*shape, dtype=dtype, device=device) for shape in ((3, width), (3, width), (width,)))
    mine, right = residual.clone(), residual.clone()
    want = TORCH.norm(x, weight, EPS, residual=right, unit_offset=unit_offset)
    with launches(order=1) as seen:
        close(TRITON.norm(padded(x), weight, EPS, residual=mine, unit_offset=unit_offset), want)
    assert mine.equal(right), "the sum is rounded once, as torch rounds it"
    assert seen.kernels == ["add_norm"]
    close(TRITON.norm(x, weight, EPS, unit_offset=unit_offset), TORCH.norm(x, weight, EPS, unit_offset=unit_offset))
    assert mine.equal(right), "without a residual nothing is changed"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", Activation)
def test_gate(device: torch.device, dtype: torch.dtype, activation: Activation) -> None:
    torch.manual_seed(0)
    gate_up = random(2, 2 * 1040, dtype=dtype, device=device) * 3  # more than a block, and not a whole number of them
    with launches(order=2) as seen:
        close(TRITON.gate(padded(gate_up), activation), TORCH.gate(gate_up, activation))
    assert seen.kernels == ["gate"]


@dataclass(frozen=True)
class Case:
    num_heads: int = 4
    num_kv_heads: int = 2
    width: int = 16
    rotated: int = 16
    normed: bool = False
    unit_offset: bool = False
    slots: tuple[int, ...] = (5, 35, 18)


CASES = {
    "plain": Case(),
    "more heads than one program has": Case(num_heads=9, num_kv_heads=3),
    "one key head": Case(num_heads=3, num_kv_heads=1),
    "width that is no power of two": Case(width=24, rotated=24),
    "part of a head": Case(width=32, rotated=8),
    "part of a head, with norms": Case(width=24, rotated=12, normed=True),
    "norms": Case(normed=True),
    "norms that count from one": Case(normed=True, unit_offset=True),
    "padding": Case(slots=(-1, 7, -1)),
}


class Setup:
    """Pages of NaN, and what torch makes of the step."""

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device) -> None:
        torch.manual_seed(0)
        norms = [random(case.width, dtype=dtype, device=device) for _ in range(2)] if case.normed else (None, None)
        self.case = case
        self.heads = HeadSpec(case.num_heads, case.num_kv_heads, case.width, *norms, EPS, case.unit_offset)
        tokens = len(case.slots)
        self.qkv = random(tokens, self.heads.num_rows * case.width, dtype=dtype, device=device)
        angles = torch.randn(tokens, case.rotated // 2)
        self.cos, self.sin = (torch.cat([some, some], -1).to(dtype).to(device) for some in (angles.cos(), angles.sin()))
        self.slots = torch.tensor(case.slots, device=device)
        shape = (NUM_BLOCKS, case.num_kv_heads, BLOCK, case.width)
        self.keys, self.values = (torch.full(shape, float("nan"), dtype=dtype, device=device) for _ in range(2))

    def run(self, order: int | None = None) -> Launches:
        with launches(order) as seen:
            self.query = rotate_write(
                padded(self.qkv), self.heads, self.cos, self.sin, self.keys, self.values, self.slots
            )
        return seen

    def check(self) -> None:
        """The queries, what the slots hold, and that nothing else was written."""
        heads, case = self.heads, self.case
        turned = TORCH.rotate(self.qkv, heads, self.cos, self.sin).view(len(self.slots), -1, heads.width)
        query, key, value = turned.split((heads.num_heads, heads.num_kv_heads, heads.num_kv_heads), 1)
        close(self.query, query)
        written = [(token, slot) for token, slot in enumerate(case.slots) if slot >= 0]
        for pages, right in ((self.keys, key), (self.values, value)):
            for token, slot in written:
                close(pages[slot // BLOCK, :, slot % BLOCK], right[token])
                pages[slot // BLOCK, :, slot % BLOCK] = float("nan")
            assert pages.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_rotary_with_the_write_of_kv(device: torch.device, name: str, dtype: torch.dtype) -> None:
    setup = Setup(CASES[name], dtype, device)
    assert setup.run(order=1).kernels == ["rotate_write"]
    setup.check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["plain", "part of a head, with norms", "padding"])
def test_in_8_bits_what_was_rotated_and_rounded_is_encoded(device: torch.device, name: str, dtype: torch.dtype) -> None:
    """Of the row's largest element, a value that is not finite."""
    case = CASES[name]
    plain, setup = (Setup(case, dtype, device) for _ in range(2))
    for one in (plain, setup):
        one.qkv[:, -1] = float("inf")
    setup.keys, setup.values = (
        torch.full((NUM_BLOCKS, case.num_kv_heads, BLOCK, case.width + 1), 77, dtype=torch.uint8, device=device)
        for _ in range(2)
    )
    right = [one.clone() for one in (setup.keys, setup.values)]
    plain.run()
    seen = setup.run(order=1)
    assert setup.query.equal(plain.query)
    slots = setup.slots[setup.slots >= 0]
    place = slots // BLOCK, slots % BLOCK
    for pages, of_dtype, told in zip(right, (plain.keys, plain.values), (setup.keys, setup.values), strict=True):
        rows = of_dtype[place[0], :, place[1]]
        fp8_pages.write(rows.transpose(0, 1), pages, *place)
        assert told.equal(pages)
    if device.type != "cuda":  # bytes are counted by the interpreter
        assert seen.written["rotate_write", "keys"] == len(slots) * case.num_kv_heads * (case.width + 1)


def test_values_are_written_as_they_are(device: torch.device) -> None:
    setup = Setup(replace(CASES["norms"], slots=(3,)), torch.bfloat16, device)
    setup.run()
    width, first = setup.heads.width, setup.heads.num_heads + setup.heads.num_kv_heads
    assert setup.values[0, :, 3].equal(setup.qkv[0, first * width :].view(-1, width))


def test_bytes_are_those_of_the_formula(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("bytes are counted by the interpreter")
    tokens, size, width = 3, 2, 48
    new = {"dtype": torch.bfloat16, "device": device}
    with launches() as seen:
        TRITON.norm(random(tokens, width, **new), random(width, **new), EPS, residual=random(tokens, width, **new))
        TRITON.gate(random(tokens, 2 * width, **new), Activation.SILU)
    rows = tokens * width * size
    assert {key: told for key, told in seen.read.items() if told} == {
        ("add_norm", "x"): rows, ("add_norm", "residual"): rows, ("add_norm", "weight"): width * size,
        ("gate", "gate_up"): 2 * rows,
    }  # fmt: skip
    assert {key: told for key, told in seen.written.items() if told} == {
        ("add_norm", "residual"): rows, ("add_norm", "out"): rows, ("gate", "out"): rows,
    }  # fmt: skip
    setup = Setup(CASES["padding"], torch.bfloat16, device)
    seen = setup.run()
    head = setup.heads.width * size
    told = {key[1]: number for key, number in seen.read.items() if number}
    assert told == {
        "qkv": tokens * setup.heads.num_rows * head, "cos": tokens * head // 2, "sin": tokens * head // 2, "slots": tokens * 8,
    }  # fmt: skip
    told = {key[1]: number for key, number in seen.written.items() if number}
    kept = setup.heads.num_kv_heads * head
    assert told == {"query": tokens * setup.heads.num_heads * head, "keys": kept, "values": kept}


def test_rows_that_one_program_cannot_hold_are_left_to_torch(device: torch.device) -> None:
    x, weight = torch.ones(1, 32784, device=device), torch.ones(32784, device=device)
    with launches() as seen:
        close(TRITON.norm(x, weight, EPS), TORCH.norm(x, weight, EPS))
    assert seen.kernels == []
