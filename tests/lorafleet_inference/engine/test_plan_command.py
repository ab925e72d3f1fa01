"""`lorafleet-inference plan` reckons from a config what a pod then takes."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from support.families import FAMILIES
from support.models import model_folder

from lorafleet_common.errors import ConfigError
from lorafleet_inference.adapters.row_layout import Place, RowLayout
from lorafleet_inference.cards import CARDS, Card
from lorafleet_inference.cli import main
from lorafleet_inference.config import GIB, EngineConfig, KvCacheDtype
from lorafleet_inference.model import sizing
from lorafleet_inference.model.budget import Wish, budget, weights_read
from lorafleet_inference.model.dry_run import ModelSize, PeakBytes, model_size
from lorafleet_inference.model.loader import load_model
from lorafleet_inference.model.runner import ModelRunner

ROOT = Path(__file__).resolve().parents[3]
LAYERS = 2
SHORT_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": LAYERS, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "dtype": "bfloat16",
}  # fmt: skip
ODD = ("llama", "gemma2", "gemma3", "phi3-longrope", "falcon-alibi", "mixtral", "qwen3-moe", "gpt2")
"""Of what transformers can do: windows, two widths, patches of attention, experts, tied heads, layers that are no Linear."""


def size_of(folder: Path, requests: int = 8) -> ModelSize:
    return model_size(folder, dtype="float32", max_batch_tokens=64, max_batch_requests=requests)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Llama of 8B parameters that has few layers."""
    made = tmp_path_factory.mktemp("8b")
    (made / "config.json").write_text(json.dumps(SHORT_8B))
    return made


@pytest.fixture(scope="module")
def size(folder: Path) -> ModelSize:
    return model_size(folder, dtype="auto", max_batch_tokens=2048, max_batch_requests=256)


@pytest.mark.parametrize("family", ODD)
def test_model_without_weights_is_of_the_size_of_the_loaded_one(family: str) -> None:
    folder = model_folder(family)
    size = size_of(folder)
    loaded = load_model(EngineConfig(model=str(folder), device="cpu", dtype="float32", cpu_kernels=False))
    assert size.weights == sizing.weight_bytes(loaded.model)
    assert size.shapes == loaded.shapes
    assert size.facts.modules == loaded.facts.modules
    assert size.itemsize == loaded.dtype.itemsize
    experts = [module for name, module in loaded.model.named_modules() if name.endswith(".experts")]
    assert size.expert_weights == sum(map(sizing.weight_bytes, experts))
    assert (size.expert_weights > 0) is (family in ("mixtral", "qwen3-moe"))
    assert FAMILIES[family].config.vocab_size == size.facts.vocab_size


@pytest.mark.parametrize(("family", "num_ranks"), [("phi3", 2), ("mixtral", 4)])
def test_a_rank_takes_what_was_planned_for_each_gpu(family: str, num_ranks: int) -> None:
    folder = model_folder(family)
    size = model_size(folder, dtype="float32", max_batch_tokens=64, max_batch_requests=8, num_ranks=num_ranks)
    config = EngineConfig(
        model=str(folder), device="cpu", dtype="float32", cpu_kernels=False, tensor_parallel_size=num_ranks
    )
    loaded = load_model(config, num_ranks - 1)
    assert size.weights == sizing.weight_bytes(loaded.model) < size_of(folder).weights
    assert size.shapes == loaded.shapes
    assert size.facts.modules == loaded.held.modules


def test_plan_for_several_gpus_is_of_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["plan", "--model", str(folder), "--adapters", "8", "--tensor-parallel-size"]
    assert main([*options, "2"]) == 0
    said = capsys.readouterr().out
    assert "on each of 2 h100-80: " in said
    assert "device: Cuda, tensorParallelSize: 2}" in said
    assert main([*options, "3"]) == 2
    assert "cannot be split among 3 ranks: it has 32 attention heads" in capsys.readouterr().err


def test_plan_counts_a_draft_model(folder: Path, size: ModelSize, capsys: pytest.CaptureFixture[str]) -> None:
    wish = Wish(num_adapters=3, rank=8, context=100, max_requests=1 << 20)
    alone, card = budget(size, CARDS["h100-80"], wish), CARDS["h100-80"]
    twice = budget(size, card, wish, size)
    assert twice.draft_bytes == size.weights == twice.memory.weights - alone.memory.weights
    assert twice.kv_token_bytes == 2 * alone.kv_token_bytes
    assert 0 < twice.num_kv_tokens <= alone.num_kv_tokens // 2
    assert main(["plan", "--model", str(folder), "--adapters", "3", "--speculative-model", str(folder)]) == 0
    assert f"{size.weights / GIB:.2f} of the draft model" in capsys.readouterr().out
    assert main(["plan", "--model", str(folder), "--speculative-model", "/nowhere"]) == 2
    assert "--speculative-model" in capsys.readouterr().err


@pytest.mark.parametrize("kv_dtype", get_args(KvCacheDtype))
def test_pod_takes_what_was_planned(kv_dtype: KvCacheDtype) -> None:
    folder = model_folder("llama")
    config = EngineConfig(
        model=str(folder),
        device="cpu",
        dtype="float32",
        max_resident_adapters=3,
        max_rank=12,
        kv_cache_memory_bytes=200_000,
        kv_cache_dtype=kv_dtype,
    )
    runner = ModelRunner(load_model(config), config)
    wish = Wish(num_adapters=3, rank=12, context=40, max_requests=8, kv_dtype=kv_dtype)
    planned = budget(size_of(folder), Card(GIB, 1e12), wish)
    assert planned.num_rank_pages == runner.budgets.total_rank_pages == 3 * runner._adapters.bank.layout.num_pages(12)
    assert planned.memory.adapters == runner._adapters.bank.num_bytes
    blocks = runner.budgets.num_kv_blocks
    assert planned.kv_token_bytes * blocks * runner.budgets.kv_block_tokens == runner.budgets.kv_cache_bytes


def test_what_is_there_at_the_same_time_is_counted() -> None:
    peak = PeakBytes()
    before = torch.zeros(100)
    peak.know([before])
    with peak:
        first = before + 1
        view = first[:50]
        second = first * 2
        del first
        third = second + 1
        del view, second
        fourth = third + 1
    assert fourth.shape == (100,)
    assert peak.peak == 3 * 400, "the first is there as long as its view"


def test_memory_of_a_device_adds_up(size: ModelSize) -> None:
    card = CARDS["h100-80"]
    found = budget(size, card, Wish(num_adapters=200, rank=16, context=8192, max_requests=256))
    memory = found.memory
    assert memory.weights == 2 * (LAYERS * 218_112_000 + 2 * 128_256 * 4096 + 4096)
    width = LAYERS * sum((4096 + 4096, 4096 + 1024, 4096 + 1024, 4096 + 4096, *(3 * [4096 + 14336])))
    layout = RowLayout.of(size.facts)
    assert layout.rank_elements == width
    assert found.adapter_bytes == layout.num_pages(16) * layout.page * 2
    assert memory.adapters == 200 * found.adapter_bytes
    assert 200 * 16 * width * 2 <= memory.adapters < 1.02 * (200 * 16 * width * 2), "of each, the last page is not full"
    assert found.kv_token_bytes == LAYERS * 8 * 2 * 128 * 2
    # logits of rows that choose, and of as many that are scored; the first once more, and twice in float32; and what 32 rows are ranked in
    logits = 256 * 128_256 * (2 * 2 + 2 + 2 * 4)
    assert logits < memory.activations < logits + 32 * 128_256 * 64, "of a prompt of 2,048 tokens the layers take less"
    parts = memory.weights + memory.adapters + memory.activations + memory.other + memory.reserve + memory.kv_cache
    assert 256 * 128_256 * 2 < memory.graphs < GIB
    assert parts + memory.graphs == memory.total == card.memory_bytes
    assert found.num_requests == min(256, memory.kv_cache // (8192 * found.kv_token_bytes)) == 256


def test_kv_of_8_bits_holds_twice_the_tokens_and_is_read_in_half_the_time(size: ModelSize) -> None:
    wish = {"num_adapters": 1, "rank": 8, "context": 8192, "max_requests": 8}
    whole, rounded = (budget(size, CARDS["l4-24"], Wish(**wish, kv_dtype=kind)) for kind in get_args(KvCacheDtype))
    assert whole.kv_token_bytes == LAYERS * 8 * 2 * (2 * 128)
    assert rounded.kv_token_bytes == LAYERS * 8 * 2 * (128 + 1)
    assert rounded.num_kv_tokens == pytest.approx(whole.num_kv_tokens * 256 / 129, rel=1e-3)
    saved = [one.num_bytes - other.num_bytes for one, other in zip(whole.floors, rounded.floors, strict=True)]
    assert saved == [batch * 8192 * LAYERS * 8 * 2 * 127 for batch in (1, 8)]


def test_adapters_take_what_their_modules_fill(size: ModelSize) -> None:
    card, layout = CARDS["h100-80"], RowLayout.of(size.facts)
    wish = Wish(num_adapters=200, rank=16, context=8192, max_requests=256)
    everywhere, some = (
        budget(size, card, replace(wish, target_modules=names)) for names in (None, ("q_proj", "v_proj"))
    )
    q_and_v = LAYERS * 16 * (4096 + 4096 + 4096 + 1024) * 2
    assert q_and_v <= some.adapter_bytes < q_and_v + layout.page * 2
    assert some.memory.adapters == 200 * some.adapter_bytes
    assert everywhere.floors[0].num_bytes - some.floors[0].num_bytes == LAYERS * 16 * 81920 * 2 - q_and_v
    few = budget(size, card, replace(wish, num_adapters=1, target_modules=("q_proj",)))
    assert few.memory.adapters == everywhere.adapter_bytes, "a pod has room for one of its largest rank at all modules"
    with pytest.raises(ConfigError, match=r"no linear module query; it has down_proj, gate_proj, .*, v_proj") as caught:
        budget(size, card, replace(wish, target_modules=("q_proj", "query")))
    assert caught.value.option == "--target-modules"


def test_activations_grow_with_the_tokens_of_a_step(folder: Path) -> None:
    long = model_size(folder, dtype="auto", max_batch_tokens=16384, max_batch_requests=1)
    wide = 16384 * 14336 * 2
    assert 3 * wide < long.activations < 6 * wide, "gate, up, their product, and the residual beside"


def test_experts_that_no_token_chooses_are_not_read() -> None:
    size = size_of(model_folder("qwen3-moe"))
    dense = size.weights - size.unread_weights - size.expert_weights
    assert (size.experts_per_token, size.num_experts) == (2, 4)
    assert weights_read(size, 1) == dense + size.expert_weights // 2
    assert weights_read(size, 2) == dense + size.expert_weights * 3 // 4
    assert weights_read(size, 64) == pytest.approx(dense + size.expert_weights, rel=1e-9)


def test_window_bounds_what_a_step_reads() -> None:
    size = size_of(model_folder("mistral"))
    assert {shape.sliding_window for shape in size.shapes} != {None}
    wish = {"num_adapters": 1, "rank": 8, "max_requests": 1}
    short, long = (
        budget(size, CARDS["l4-24"], Wish(context=context, **wish)).floors[0].num_bytes for context in (100, 300)
    )
    assert short == long


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--model", str(folder), "--adapters", "200", "--context", "8192", "--gpu-memory", "8Gi"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "weights          2.77    34.6%" in text
    assert "adapters         0.99    12.4%   200 of rank 16, 5.1 MiB each" in text
    assert "maxResidentAdapters: 200, maxRank: 16, adapterMemory: 1013Mi" in text
    assert main([*arguments, "--kv-cache-dtype", "fp8"]) == 0
    rounded = capsys.readouterr().out
    in_eight_bits = int(rounded.split(" requests of 8192 tokens at once")[0].splitlines()[-1])
    assert "engine: {maxModelLen: 8192, kvCacheDtype: fp8}" in rounded
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    fitting = found["kv_cache"] // (8192 * found["kv_token_bytes"])
    assert found["num_requests"] == fitting
    assert 25 < fitting < 43, "43 beside no captured steps, and more where nobody ranks or scores"
    assert f"{fitting} requests of 8192 tokens at once" in text
    assert 2 * fitting <= in_eight_bits <= 2 * fitting + 1, "half the bytes of each token"
    assert found["memory"]["weights"] == 2 * (LAYERS * 218_112_000 + 2 * 128_256 * 4096 + 4096)


def test_command_says_what_does_not_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--model", str(folder), "--gpu", "l4-24", "--rank", "256", "--adapters", "1000"]
    assert main(arguments) == 1
    assert "does not fit: no request of 4096 tokens" in capsys.readouterr().out
    assert main([*arguments, "--gpu-memory", "100Gi"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--context", "200000"], "--context: 200000 tokens are more than the 131072"),
        (["--rank", "300"], "argument --rank: 300 is more than 256"),
        (["--adapters", "0"], "argument --adapters: 0 is less than 1"),
        (["--target-modules", "q_proj,"], "argument --target-modules: an empty name in 'q_proj,'"),
        (["--target-modules", "experts"], "--target-modules: the model has no linear module experts"),
        (["--gpu-memory", "much"], "argument --gpu-memory: not a quantity"),
        (["--gpu", "voodoo2"], "argument --gpu: invalid choice"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_command_refuses(arguments: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = main(["plan", "--model", str(folder), *arguments])
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sizing.md", "quantization.md"])
def test_page_shows_what_the_command_prints(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHORT_8B | {"num_hidden_layers": 32}))
    page = (ROOT / "docs" / name).read_text()
    shown = re.findall(r"<!-- output of: (plan [^>]*) -->\n\n```\n(.*?)```\n", page, re.DOTALL)
    assert len(shown) == (2 if name == "sizing.md" else 1)
    for command, text in shown:
        assert main(command.replace("LLAMA_8B", str(tmp_path)).split()) == 0
        assert capsys.readouterr().out == text
    assert name != "sizing.md" or all(f"`{card}`" in page for card in CARDS)


MIB = 1 << 20


LAYOUT = RowLayout({f"m{number}": Place(2048, 2048, 4096) for number in range(640)})
"""A rank takes 5 MiB of bfloat16: 8 pages."""


def pages(free_bytes: int | None, **options: int) -> int:
    config = EngineConfig(model="", max_resident_adapters=32, max_rank=64, **options)  # type: ignore[arg-type]
    return sizing.pool_pages(config, LAYOUT, 2, free_bytes)


def test_pool_takes_what_the_options_bound_where_nothing_else_does() -> None:
    assert pages(None) == pages(80 * GIB) == 32 * 64 * 8


def test_pool_takes_a_quarter_of_what_weights_leave_and_holds_one_of_the_largest_rank() -> None:
    page = 5 * MIB // 8
    assert LAYOUT.page * 2 == page
    assert pages(6 * GIB) == (6 * GIB // 4) // page
    assert pages(1 * GIB) == 64 * 8
    assert pages(6 * GIB, adapter_memory_bytes=4 * GIB) == 4 * GIB // page, "who says how much is not bounded"
    assert pages(None, adapter_memory_bytes=80 * GIB) == 80 * GIB // page, "adapters have more than A and B"


def test_pool_that_holds_no_adapter_of_the_largest_rank_is_refused() -> None:
    with pytest.raises(ConfigError, match="hold no adapter of rank 64, which takes 335544320") as caught:
        pages(None, adapter_memory_bytes=300 * MIB)
    assert caught.value.option == "--adapter-memory"


def test_pod_has_the_pool_that_was_asked_for() -> None:
    folder = model_folder("llama")
    options = {"max_resident_adapters": 32, "max_rank": 64, "kv_cache_memory_bytes": 200_000}
    loaded = load_model(EngineConfig(model=str(folder), device="cpu", dtype="float32"))
    page = RowLayout.of(loaded.facts).page * 4
    config = EngineConfig(
        model=str(folder), device="cpu", dtype="float32", adapter_memory_bytes=401 * page + 5, **options
    )  # type: ignore[arg-type]
    runner = ModelRunner(loaded, config)
    assert runner.budgets.total_rank_pages == 401
    assert runner._adapters.bank.num_bytes == 401 * page
