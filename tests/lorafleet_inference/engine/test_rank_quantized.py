"""Quantised weights on several ranks: each rank has its part of the numbers of the whole, and all together answer as one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.engines import DrivenEngine
from support.families import FAMILIES, adapter_specs
from support.models import model_folder, save_adapter, save_model
from support.quantized import FORMATS, awq, save_quantised
from support.ranks import answers, ranked

from lorafleet_common.errors import ConfigError
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.kernels.packed import plain_weight
from lorafleet_inference.model.dry_run import model_size
from lorafleet_inference.model.loader import check_split, load_model
from lorafleet_inference.model.quantization.cut import CutError, layout_of_part, part_of
from lorafleet_inference.model.quantization.weight import Codes, Layout, QuantizedWeight
from lorafleet_inference.model.ranks.split import Shard
from lorafleet_inference.model.sizing import weight_bytes

READ = ("gptq-8", "w4a16-asymmetric", "w4a16-order", "w8a8-asymmetric", "fp8-blocks", "fp8-tensor", "llm-int8")
"""Forms of which one rank's weights are looked at; those of `SERVED` answer on two."""
AT_LOAD = ("int8", "int4", "fp8", "nf4")
SERVED = ("gptq-4-order", "awq", "float-blocks", "nf4-nested")
MAX_DIFFERENCE = 1e-3


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, whose widths two ranks can share in groups of 16."""
    config = FAMILIES["llama"].config
    small = type(config)(**{**config.to_dict(), "num_hidden_layers": 1, "intermediate_size": 64})
    return save_model(small, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Return the folders of a format, with its weights and with the same numbers in 32 bit."""
    root, known = tmp_path_factory.mktemp("quantised"), dict[str, tuple[Path, Path]]()

    def make(name: str) -> tuple[Path, Path]:
        if name not in known:
            known[name] = save_quantised(base, root / name, *FORMATS[name])
        return known[name]

    return make


def config_of(folder: Path, **options: Any) -> EngineConfig:
    return EngineConfig(
        model=str(folder), device="cpu", decoder="own", num_threads=1, max_rank=16, max_batch_tokens=40,
        **{"cpu_kernels": False, **options},
    )  # fmt: skip


LAYOUTS = {
    "rows": Layout(Codes.UINT8, midpoint=128),
    "all": Layout(Codes.FP8, block_rows=None),
    "groups": Layout(Codes.UINT4, block_columns=16, has_zeros=True),
    "groups-cut": Layout(Codes.UINT4, block_columns=48, has_zeros=True),
    "wide-group": Layout(Codes.UINT4, block_columns=128, has_zeros=True),
    "blocks-cut": Layout(Codes.FP8, block_rows=10, block_columns=12),
    "order": Layout(Codes.UINT4, block_columns=16, has_zeros=True, has_order=True),
    "flat": Layout(Codes.TABLE4, block_columns=32, is_flat=True),
    "flat-over-rows": Layout(Codes.TABLE4, block_columns=64, is_flat=True),
    "flat-all": Layout(Codes.TABLE4, block_columns=8192, is_flat=True),
}


def drawn(layout: Layout, shape: tuple[int, int]) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(3)
    weight = QuantizedWeight.empty(layout, shape)
    weight.codes.random_(0, 120, generator=generator)
    weight.scales.uniform_(0.5, 2, generator=generator)
    for one, top in ((weight.zeros, 16), (weight.order, layout.grid(shape)[1])):
        if one is not None:
            one.random_(0, top, generator=generator)
    if weight.table is not None:
        weight.table.uniform_(-1, 1, generator=generator)
    return weight


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_parts_hold_the_numbers_of_the_whole(layout: Layout) -> None:
    weight = drawn(layout, (48, 96))
    numbers = weight.dequantized(torch.float32)
    for size in (2, 3):
        for rank in range(size):
            for module in ("qkv_proj", "down_proj"):
                cut = Shard(rank, size, 12, 6).cut(module, weight.shape)
                part = part_of(weight, module, cut)
                assert part.layout == layout_of_part(layout, module, cut)
                assert part.num_bytes == part.layout.num_bytes(part.shape)
                columns = numbers[:, cut.columns[0]]
                wanted = torch.cat([columns[one] for one in cut.rows])
                assert torch.equal(part.dequantized(torch.float32), wanted), (size, rank, module)


def test_blocks_that_a_cut_keeps_whole_stay_as_they_are() -> None:
    cut = Shard(1, 2, 4, 2).cut("down_proj", (48, 256))
    for layout in (Layout(Codes.UINT4, block_columns=128), Layout(Codes.TABLE4, block_columns=64, is_flat=True)):
        assert layout_of_part(layout, "down_proj", cut) == layout


@pytest.mark.parametrize(
    ("layout", "width", "why"),
    [
        (Layout(Codes.UINT4, block_columns=16), 48, "cut into 8 numbers each"),
        (Layout(Codes.TABLE4, block_columns=64, is_flat=True), 24, "cut into 4 numbers each"),
        (Layout(Codes.UINT4), 26, "two codes of model.layers.0.mlp.down_proj share a byte"),
    ],
)
def test_what_is_too_small_to_be_cut_is_refused(layout: Layout, width: int, why: str) -> None:
    module = "model.layers.0.mlp.down_proj"
    with pytest.raises(CutError, match=why):
        layout_of_part(layout, module, Shard(1, 2, 4, 2).cut(module, (32, width)))


@torch.inference_mode()
@pytest.mark.parametrize("name", READ)
def test_a_rank_reads_its_part_of_each_format(made: Callable[[str], tuple[Path, Path]], name: str) -> None:
    quantised, plain = made(name)
    loaded = load_model(config_of(quantised, tensor_parallel_size=2), 1)
    wanted = load_file(plain / "model.safetensors")
    shard = Shard(1, 2, 4, 2)
    modules = [one.name for one in loaded.facts.modules if f"{one.name}.weight" in wanted]
    assert len(modules) == 7
    for module in modules:
        part = shard.weight(module, wanted[f"{module}.weight"])
        assert torch.equal(plain_weight(loaded.model.get_submodule(module)), part), module
    if name == READ[0]:
        assert loaded.facts == load_model(config_of(plain, tensor_parallel_size=2), 1).facts
    size = weight_bytes(loaded.model)
    planned = model_size(quantised, dtype="float32", max_batch_tokens=64, max_batch_requests=8, num_ranks=2)
    assert abs(planned.weights - size) < 0.02 * size


@torch.inference_mode()
@pytest.mark.parametrize("kind", AT_LOAD)
def test_a_rank_has_its_part_of_what_is_quantised_at_load(base: Path, kind: Any) -> None:
    whole = load_model(config_of(base, quantization=kind)).model
    loaded = load_model(config_of(base, quantization=kind, tensor_parallel_size=2), 1)
    shard = Shard(1, 2, 4, 2)
    for module in loaded.facts.modules:
        part = shard.weight(module.name, plain_weight(whole.get_submodule(module.name)))
        assert torch.equal(plain_weight(loaded.model.get_submodule(module.name)), part), module.name
    planned = model_size(
        base, dtype="float32", max_batch_tokens=64, max_batch_requests=8, num_ranks=2, quantization=kind
    )
    tables = 3 * 64 if kind == "nf4" else 0  # of layers that are one product
    assert planned.weights - weight_bytes(loaded.model) == tables


@torch.inference_mode()
def test_a_quantised_head_is_brought_back_and_split_by_the_vocabulary(base: Path, tmp_path: Path) -> None:
    quantise, config = FORMATS["fbgemm-fp8"]
    left_out = {**config, "modules_to_not_convert": None}
    quantised, plain = save_quantised(base, tmp_path, quantise, left_out, skip=())
    head = load_model(config_of(quantised, tensor_parallel_size=2), 0).model.lm_head
    wanted = load_file(plain / "model.safetensors")["lm_head.weight"]
    assert torch.equal(head.part, wanted[:106])
    assert torch.equal(plain_weight(head), wanted)


def check_alike(config: EngineConfig, adapters: dict[str, Path]) -> None:
    wanted = answers(DrivenEngine(config), adapters)
    with ranked(config, 2) as engine:
        found = answers(engine, adapters)
        assert not engine.lost
    for request, (tokens, scores) in wanted.items():
        assert found[request][0] == tokens, request
        assert (found[request][1] - scores).abs().max() < MAX_DIFFERENCE, request


@pytest.mark.parametrize("name", [*SERVED, "fp8"])
def test_two_ranks_answer_as_one(
    base: Path, made: Callable[[str], tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory, name: Any
) -> None:
    folder = base if name in AT_LOAD else made(name)[0]
    adapters = base.parent / "adapters"
    if not adapters.exists():
        for kind in ("rank-7", "dora"):
            save_adapter(base, adapters / kind, adapter_specs(FAMILIES["llama"])[kind])
    config = config_of(folder, quantization=name if name in AT_LOAD else None)
    check_alike(config, {kind: adapters / kind for kind in ("rank-7", "dora")})


def test_quantised_experts_are_split_inside(tmp_path: Path) -> None:
    config = FAMILIES["mixtral"].config
    small = type(config)(**{**config.to_dict(), "num_hidden_layers": 1, "intermediate_size": 64})
    folder, plain = save_quantised(save_model(small, tmp_path / "base"), tmp_path, *FORMATS["awq"])
    adapter = save_adapter(plain, tmp_path / "experts", adapter_specs(FAMILIES["mixtral"])["experts"])
    check_alike(config_of(folder), {"experts": adapter})
    loaded = load_model(config_of(folder, tensor_parallel_size=2), 1)
    planned = model_size(folder, dtype="float32", max_batch_tokens=64, max_batch_requests=8, num_ranks=2)
    assert abs(planned.weights - weight_bytes(loaded.model)) < 0.02 * planned.weights


def test_groups_that_ranks_would_cut_too_small_are_refused_before_a_rank_starts(tmp_path: Path) -> None:
    """The usual tiny model has 48 inputs of its down projections, so 24 on each rank."""
    folder, _ = save_quantised(model_folder("llama"), tmp_path, lambda weight: awq(weight, group=16), FORMATS["awq"][1])
    said = r"LlamaForCausalLM cannot be split among 2 ranks: model\.layers\.0\.mlp\.down_proj has scales for blocks"
    config = config_of(folder, tensor_parallel_size=2)
    with pytest.raises(ConfigError, match=said) as caught:
        check_split(config)
    assert caught.value.option == "--tensor-parallel-size"
    with pytest.raises(ConfigError, match=said):
        load_model(config, 1)
    with pytest.raises(ConfigError, match=said):
        model_size(folder, dtype="float32", max_batch_tokens=64, max_batch_requests=8, num_ranks=2)
