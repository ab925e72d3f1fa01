"""What each rank holds of a model, and which models cannot be split."""

import socket
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.families import FAMILIES, OWN
from support.models import model_folder
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, LlamaConfig, Qwen3MoeConfig

from lorafleet_common.errors import ConfigError
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.channel import EngineEnd, StartEngine
from lorafleet_inference.engine.process import running
from lorafleet_inference.kernels.packed import plain_weight
from lorafleet_inference.model.attention import Probe, attending
from lorafleet_inference.model.checked import LoadedModel
from lorafleet_inference.model.decoder import Decoder
from lorafleet_inference.model.loader import check_split, load_model
from lorafleet_inference.model.ranks.axes import Along, Split
from lorafleet_inference.model.ranks.checks import shard_of
from lorafleet_inference.model.ranks.narrow import work_in
from lorafleet_inference.model.ranks.shards import parts_of
from lorafleet_inference.model.ranks.split import Shard


def load_part(family: str, rank: int, size: int, **options: Any) -> LoadedModel:
    config = EngineConfig(
        model=str(model_folder(family)),
        device="cpu",
        num_threads=1,
        tensor_parallel_size=size,
        cpu_kernels=False,
        **options,
    )
    return load_model(config, rank)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("groups", [(8,), (2,), (8, 2, 2), (8, 8)])
def test_ranks_together_hold_everything_in_order(size: int, groups: tuple[int, ...]) -> None:
    length = 3 * sum(groups)
    parts = [Split(Along.OUTPUTS, groups, rank, size).slices(length) for rank in range(size)]
    held = [[at for some in part for at in range(length)[some]] for part in parts]
    assert len({len(one) for one in held}) == 1
    begin = 0
    for number, units in enumerate(groups):
        copies = max(1, size // units)
        group = [at for part in parts for at in range(length)[part[number]]]
        every = list(range(begin, begin := begin + 3 * units))
        assert sorted(group) == sorted(every * copies)
        assert group[: len(group) // size * copies : 1][: len(group) // size] == every[: len(group) // size]


def test_query_heads_find_their_key_head_where_these_are_repeated() -> None:
    for rank in range(8):
        queries = Split(Along.OUTPUTS, (16,), rank, 8).slices(16)[0]
        keys = Split(Along.OUTPUTS, (2,), rank, 8).slices(2)[0]
        assert {query // 8 for query in range(16)[queries]} == set(range(2)[keys])


def test_an_axis_that_is_not_of_such_units_is_refused() -> None:
    with pytest.raises(ValueError, match="33 elements are not 8"):
        Split(Along.INPUTS, (8,), 0, 2).slices(33)


def test_a_rank_reads_its_part_of_each_tensor() -> None:
    folder = model_folder("llama")
    whole = load_file(folder / "model.safetensors")
    loaded = load_part("llama", 1, 2)
    layer = loaded.model.get_submodule("model.layers.2")
    for name, rows, columns in (
        ("self_attn.q_proj", slice(16, 32), slice(None)),
        ("self_attn.v_proj", slice(8, 16), slice(None)),
        ("self_attn.o_proj", slice(None), slice(16, 32)),
        ("mlp.up_proj", slice(24, 48), slice(None)),
        ("mlp.down_proj", slice(None), slice(24, 48)),
    ):
        part = plain_weight(layer.get_submodule(name))
        assert torch.equal(part, whole[f"model.layers.2.{name}.weight"][rows, columns]), name
    # 211 tokens: 106 of the first rank, 105 of this one, and a row of zeros
    for module, key in (("lm_head", "lm_head.weight"), ("model.embed_tokens", "model.embed_tokens.weight")):
        words = loaded.model.get_submodule(module)
        assert torch.equal(words.part[:105], whole[key][106:])
        assert words.part.shape == (106, 32)
        assert not words.part[105:].any()
        assert torch.equal(plain_weight(words), whole[key])
    assert loaded.facts.vocab_size == loaded.held.vocab_size == 211
    assert loaded.facts.side_modules == loaded.held.side_modules
    assert [one.in_features for one in loaded.facts.modules] != [one.in_features for one in loaded.held.modules]
    assert {one.num_kv_heads for one in loaded.shapes} == {1}


def test_a_packed_weight_is_split_within_its_parts() -> None:
    key = "model.layers.0.self_attn.qkv_proj.weight"
    whole = load_file(model_folder("phi3") / "model.safetensors")[key]
    shard = shard_of(AutoConfig.from_pretrained(model_folder("phi3")), 1, 2)
    with parts_of(model_folder("phi3"), shard) as parts:
        found = parts[key][...]
    assert torch.equal(found, torch.cat((whole[16:32], whole[40:48], whole[56:64])))


def test_biases_of_partial_sums_are_added_once() -> None:
    bias = torch.arange(4.0)
    shards = [Shard(rank, 2, 4, 2) for rank in range(2)]
    assert torch.equal(sum(shard.bias("mlp.down_proj", bias) for shard in shards), bias)
    assert torch.equal(torch.cat([shard.bias("mlp.up_proj", bias) for shard in shards]), bias)
    assert all(torch.equal(shard.bias("norm", bias), bias) for shard in shards)


@pytest.mark.parametrize(
    ("config", "size", "why"),
    [
        (
            FAMILIES["gpt2"].config,
            2,
            "GPT2LMHeadModel cannot be split among 2 ranks: it is of no family of our decoder, and transformers has no plan",
        ),
        (LlamaConfig(num_attention_heads=6, num_key_value_heads=6, hidden_size=48), 4, "it has 6 attention heads"),
        (LlamaConfig(num_attention_heads=12, num_key_value_heads=3, hidden_size=48), 2, "3 key-value heads"),
        (
            LlamaConfig(num_attention_heads=4, num_key_value_heads=4, hidden_size=32, intermediate_size=49),
            2,
            "size is 49",
        ),
        (
            Qwen3MoeConfig(num_attention_heads=4, num_key_value_heads=4, moe_intermediate_size=6, intermediate_size=8),
            4,
            "its moe_intermediate_size is 6",
        ),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(config: Any, size: int, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        shard_of(config, 0, size)
    assert caught.value.option == "--tensor-parallel-size"


def test_an_engine_refuses_it_before_it_starts_ranks() -> None:
    config = EngineConfig(model=str(model_folder("gpt2")), device="cpu", tensor_parallel_size=2)
    start = StartEngine(config=config, log_level="info", log_format="text")
    with socket.socket() as nobody, pytest.raises(ConfigError, match="GPT2LMHeadModel cannot be split"):  # noqa: SIM117
        with running(start, EngineEnd(nobody)):
            pass


def test_what_has_no_decoder_of_ours_is_not_split_by_it() -> None:
    config = EngineConfig(model=str(model_folder("phi")), device="cpu", decoder="own", tensor_parallel_size=2)
    with pytest.raises(ConfigError, match="PhiForCausalLM has no decoder of our own") as caught:
        check_split(config)
    assert caught.value.option == "--decoder"


class Collectives(TorchDispatchMode):
    """Counts what ranks do together."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace in ("c10d", "_c10d_functional"):
            self.seen.append(function._opname)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        *((family, {}) for family in ("llama", "gemma2", "phi3", "mixtral", "qwen3-moe")),
        *((family, {}) for family in ("phi", "cohere", "gpt-neox", "starcoder2")),
        *((family, {"decoder": "transformers"}) for family in ("llama", "mixtral")),
    ],
)
def test_a_step_sums_twice_a_layer_and_once_for_the_embedding_and_gathers_the_logits_once(
    family: str, options: Mapping[str, Any]
) -> None:
    seen, num_layers = _collectives_of(family, options)
    assert seen == ["allreduce_"] * (1 + 2 * num_layers) + ["gather_"]


def test_norms_of_all_heads_sum_once_each_beside_that() -> None:
    seen, num_layers = _collectives_of("olmo2", {})
    assert seen == ["allreduce_"] * (1 + (2 + 2) * num_layers) + ["gather_"]


def _collectives_of(family: str, options: Mapping[str, Any]) -> tuple[list[str], int]:
    """Return what the first of two ranks does together with the other in a step, and its number of layers."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    loaded = load_part(family, 0, 2, **options)
    assert isinstance(loaded.model, Decoder) == (family in OWN and not options)
    assert loaded.shard is not None
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:

        def total(partial: torch.Tensor) -> torch.Tensor:
            torch.distributed.all_reduce(partial)
            return partial

        def gather(part: torch.Tensor) -> list[torch.Tensor]:
            parts = [torch.empty_like(part) for _ in range(2)]
            torch.distributed.gather(part, parts, dst=0)
            return parts

        work_in(loaded.model, loaded.shard, total, gather)
        with torch.inference_mode(), attending(Probe()), Collectives() as collectives:
            loaded.model(input_ids=torch.tensor([[5, 6, 7]]), position_ids=torch.arange(3)[None], use_cache=False)
    finally:
        torch.distributed.destroy_process_group()
    return collectives.seen, loaded.facts.num_layers
