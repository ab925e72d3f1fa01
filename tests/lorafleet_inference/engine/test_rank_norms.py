"""Norms of queries and keys over all heads: the ranks' parts together are the whole."""

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import CohereConfig, NanoChatConfig, Olmo2Config, OlmoeConfig, PreTrainedConfig
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.olmoe.modeling_olmoe import OlmoeRMSNorm

from lorafleet_common.errors import ConfigError
from lorafleet_inference.model.ranks.checks import shard_of
from lorafleet_inference.model.ranks.norms import join_means

HEADS, KV_HEADS, WIDTH, TOKENS = 8, 2, 4, 5
SIZES = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}


def parts_of(norm: torch.nn.Module, name: str, config: PreTrainedConfig, size: int, x: torch.Tensor) -> torch.Tensor:
    """Return what so many ranks make of x [tokens, heads, ..] with their parts of a norm, in the order of the ranks."""
    shards = [shard_of(config, rank, size) for rank in range(size)]
    weight = norm.weight
    assert isinstance(weight, torch.Tensor)
    # of all heads together x is one axis, and so is the weight
    xs = [shard.split_of(name).take(x, -weight.ndim) for shard in shards]  # type: ignore[union-attr]
    means = sum(part.float().pow(2).mean(-1, keepdim=True) for part in xs)

    def total(mean: torch.Tensor) -> torch.Tensor:
        return mean.copy_(means)  # as a collective does, in its place

    found = []
    for shard, part in zip(shards, xs, strict=True):
        mine = copy.deepcopy(norm)
        mine.weight = torch.nn.Parameter(shard.weight(name, weight.detach()))
        join_means(mine, total, size)
        found.append(mine(part))
    return torch.cat(found, -weight.ndim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["q_norm", "k_norm"])
@pytest.mark.parametrize(("kind", "config"), [(Olmo2RMSNorm, Olmo2Config), (OlmoeRMSNorm, OlmoeConfig)])
def test_the_mean_is_of_all_heads(
    kind: Callable[..., torch.nn.Module], config: type[PreTrainedConfig], name: str, size: int, dtype: torch.dtype
) -> None:
    heads = HEADS if name == "q_norm" else KV_HEADS
    norm = kind(heads * WIDTH, eps=1e-3).to(dtype)
    torch.nn.init.normal_(norm.weight)  # type: ignore[arg-type]
    x = torch.randn(TOKENS, heads * WIDTH).to(dtype) * torch.logspace(-3, 1, heads * WIDTH).to(dtype)
    # a key-value head that two ranks have is there twice
    wanted = norm(x).unflatten(-1, (heads, WIDTH)).repeat_interleave(max(1, size // heads), 1).flatten(1)
    found = parts_of(norm, name, config(**SIZES), size, x)
    assert torch.allclose(found, wanted, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6)


@pytest.mark.parametrize("size", [2, 4])
def test_each_rank_has_the_weights_of_its_heads(size: int) -> None:
    norm = CohereLayerNorm((HEADS, WIDTH))
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(TOKENS, HEADS, WIDTH)
    found = parts_of(norm, "q_norm", CohereConfig(**SIZES, use_qk_norm=True), size, x)
    assert torch.equal(found, norm(x))


def test_norms_of_each_head_are_whole_on_each_rank() -> None:
    assert shard_of(CohereConfig(**SIZES), 0, 2).split_of("q_norm") is None


def test_a_norm_that_may_take_another_mean_is_refused() -> None:
    with pytest.raises(ConfigError, match="q_norm is a NanoChatRMSNorm of all heads together"):
        shard_of(NanoChatConfig(**SIZES), 0, 2)
