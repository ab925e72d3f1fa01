"""Products with quantised weights equal those with the weight that torch brings back, and read each code once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.engines import DrivenEngine
from support.families import VOCABULARY, AdapterSpec
from support.models import save_adapter, save_model
from support.quantised_weights import COLUMN_ORDER, ROWS, part_of_columns, weight_of
from support.triton_launches import launches
from support.triton_sizes import SMALL
from torch.nn import functional as F
from transformers import LlamaConfig

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import SamplingParams
from lorafleet_inference.kernels.triton.backend import TritonKernels
from lorafleet_inference.kernels.triton.weights import bring_back, multiply
from lorafleet_inference.model.quantization.on_gpu import matrix_of
from lorafleet_inference.model.quantization.weight import Codes, Layout, QuantizedWeight

LAYOUTS = {
    "4 bit, groups narrower than a step": Layout(Codes.UINT4, block_columns=32, has_zeros=True),
    "4 bit, groups of a step": Layout(Codes.UINT4, block_columns=128, midpoint=8, scale_dtype=torch.bfloat16),
    "4 bit, a shorter last group": Layout(Codes.UINT4, block_columns=96, has_zeros=True, scale_dtype=torch.float32),
    "8 bit, rows": Layout(Codes.UINT8, midpoint=128, scale_dtype=torch.float32),
    "fp8, blocks": Layout(Codes.FP8, block_rows=24, block_columns=128, scale_dtype=torch.float32),
    "fp8, one scale": Layout(Codes.FP8, block_rows=None, scale_dtype=torch.float32),
    "nf4": Layout(Codes.TABLE4, block_columns=64, is_flat=True, scale_dtype=torch.float32),
}
WIDTHS = {"4 bit, groups narrower than a step": 160}
GREEDY = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True, num_logprobs=0)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_product_is_that_of_the_weight_of_torch(device: torch.device, name: str, dtype: torch.dtype) -> None:
    layout, width = LAYOUTS[name], WIDTHS.get(name, 256)
    weight = weight_of(layout, width, device)
    matrix = matrix_of(weight)
    assert matrix is not None
    wide = torch.full((3, width + 8), float("nan"), dtype=dtype, device=device)
    wide[:, :width] = torch.randn(3, width)
    x, bias = wide[:, :width], torch.randn(ROWS).to(dtype).to(device)
    with launches(order=1) as seen:
        y = multiply(x, matrix, bias)
        numbers = bring_back(matrix, dtype)
    assert seen.kernels == ["multiply", "bring_back"]
    wanted = weight.dequantized(dtype)
    assert numbers.equal(wanted), "the same numbers, rounded once"
    right = F.linear(x.double(), wanted.double(), bias.double())
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(y.double(), right, rtol=tolerance, atol=tolerance)
    if device.type == "cpu":
        assert seen.read["multiply", "codes"] == ROWS * width // layout.codes.per_byte
        assert seen.read["multiply", "scales"] == weight.scales.numel() * weight.scales.element_size()
        assert seen.written["bring_back", "out"] == ROWS * width * dtype.itemsize


ORDERED = {
    "4 bit": COLUMN_ORDER,
    "8 bit": Layout(Codes.UINT8, block_columns=128, midpoint=128, has_order=True, scale_dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", ORDERED)
@pytest.mark.parametrize("is_part", [False, True], ids=["whole", "part"])
def test_columns_in_another_order_are_sorted_once(device: torch.device, name: str, *, is_part: bool) -> None:
    """Of a part as a rank has it, blocks have some of their columns and some blocks have none."""
    layout, width = ORDERED[name], 256
    weight = weight_of(layout, width, device)
    if is_part:
        width = 160
        weight = part_of_columns(weight, width)
    numbers, num_bytes = weight.dequantized(torch.float32), weight.num_bytes
    assert weight.order is not None
    num_blocks = len(weight.order.unique())
    matrix = matrix_of(weight)
    assert matrix is not None
    assert (matrix.blocks is not None) == is_part, "else the blocks are whole, and nothing is looked up"
    assert weight.num_bytes == num_bytes + (4 * width if is_part else 0)
    assert bring_back(matrix, torch.float32).equal(numbers)
    assert weight.dequantized(torch.float32).equal(numbers), "by torch, from the sorted codes"
    for tokens in (3, 65):
        x, bias = torch.randn(tokens, width, device=device), torch.randn(ROWS, device=device)
        with launches(order=1) as seen:
            y = multiply(x, matrix, bias)
        torch.testing.assert_close(y, F.linear(x, numbers, bias), rtol=1e-4, atol=1e-4)
        if device.type == "cpu" and tokens == 3:
            assert seen.read["multiply", "codes"] == ROWS * width // layout.codes.per_byte
            assert seen.read["multiply", "scales"] == ROWS * num_blocks * weight.scales.element_size()


def test_many_tokens_are_left_to_torch_once_the_weight_is_back(device: torch.device) -> None:
    weight = weight_of(LAYOUTS["8 bit, rows"], 64, device)
    matrix = matrix_of(weight)
    assert matrix is not None
    for tokens, kernel in ((17, "multiply"), (65, "bring_back")):
        x = torch.randn(1, tokens, 64, device=device)
        with launches() as seen:
            y = multiply(x, matrix, None)
        assert seen.kernels == [kernel]
        torch.testing.assert_close(y, F.linear(x, weight.dequantized(torch.float32)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [{"layout": Layout(Codes.TABLE4, block_columns=64, is_flat=True), "width": 96},
     {"layout": Layout(Codes.UINT8, midpoint=128), "width": 40}],
    ids=["blocks over rows", "odd width"],
)  # fmt: skip
def test_what_the_kernels_are_not_for(fields: dict[str, Any]) -> None:
    assert matrix_of(QuantizedWeight.empty(fields["layout"], (ROWS, fields["width"]))) is None


def test_engine_answers_the_same_by_kernels(device: torch.device, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        **sizes, vocab_size=VOCABULARY, num_hidden_layers=1, max_position_embeddings=64, initializer_range=0.2
    )
    model = save_model(config, tmp_path / "model")
    adapter = save_adapter(model, tmp_path / "adapter", AdapterSpec(3, seed=1))
    answers = []
    for decoder, triton in (("own", TritonKernels(device, SMALL)), ("transformers", None)):
        engine = DrivenEngine(
            EngineConfig(
                model=str(model), device=device.type, dtype="float32", num_threads=1, kv_cache_memory_bytes=1 << 20,
                cpu_kernels=False, gpu_kernels=False, decoder=decoder, quantization="nf4", max_resident_adapters=1,
            ),
            triton=triton,
        )  # fmt: skip
        with launches() as seen:
            engine.register({"one": adapter})
            engine.submit("a", "one", (5, 9, 12, 30), GREEDY)
            engine.run_until_ended(["a"])
        assert seen.kernels.count("multiply") == (0 if triton is None else seen.kernels.count("gate") * 4)
        events = engine.events()
        answers.append((engine.tokens("a"), [one.chosen for event in events for one in event.logprobs or ()]))
    assert answers[0][0] == answers[1][0]
    assert answers[0][1] == pytest.approx(answers[1][1], abs=1e-3)
