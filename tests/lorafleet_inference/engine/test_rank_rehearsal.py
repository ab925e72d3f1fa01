"""A family whose code takes no part of itself, although its plan is known, is refused before anything is read."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.plan_families import PLAN_FAMILIES, config_of
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lorafleet_common.errors import ConfigError
from lorafleet_inference.model.dry_run import model_size
from lorafleet_inference.model.loader import check_split
from lorafleet_inference.model.ranks.checks import shard_of
from lorafleet_inference.model.ranks.rehearsal import check_part

HEADS, KV_HEADS, HIDDEN = 4, 2, 32


class CountingConfig(LlamaConfig):
    """Its code counts heads by the config. `heads_of`: how it shapes the queries, keys and values of a token."""

    model_type = "counting"
    heads_of: str = "fixed"


class CountingAttention(nn.Module):
    is_causal, num_key_value_groups, scaling = True, HEADS // KV_HEADS, 1.0

    def __init__(self, config: CountingConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        width = HIDDEN // HEADS
        self.q_proj = nn.Linear(HIDDEN, HEADS * width, bias=False)
        self.k_proj = nn.Linear(HIDDEN, KV_HEADS * width, bias=False)
        self.v_proj = nn.Linear(HIDDEN, KV_HEADS * width, bias=False)
        self.o_proj = nn.Linear(HEADS * width, HIDDEN, bias=False)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Any = None, **options: Any
    ) -> tuple[torch.Tensor, None]:
        def heads(x: torch.Tensor, number: int) -> torch.Tensor:
            if self.config.heads_of == "fixed":
                shape = (number, HIDDEN // HEADS)
            else:  # of half the width, where there is half of it
                shape = (number, x.shape[-1] // number)
            return x.view(*x.shape[:-1], *shape).transpose(1, 2)

        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, None)
        queries = heads(self.q_proj(hidden_states), HEADS)
        keys, values = (heads(one(hidden_states), KV_HEADS) for one in (self.k_proj, self.v_proj))
        found, _ = attend(self, queries, keys, values, attention_mask, dropout=0.0, scaling=1.0, **options)
        return self.o_proj(found.reshape(*hidden_states.shape[:-1], -1)), None


class CountingForCausalLM(LlamaForCausalLM):
    config_class = CountingConfig

    def __init__(self, config: CountingConfig) -> None:
        super().__init__(config)
        for number, layer in enumerate(self.model.layers):
            layer.self_attn = CountingAttention(config, number)


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    """Have transformers know the family."""
    AutoConfig.register(CountingConfig.model_type, CountingConfig)
    AutoModelForCausalLM.register(CountingConfig, CountingForCausalLM)
    yield
    del CONFIG_MAPPING._extra_content[CountingConfig.model_type]
    del MODEL_FOR_CAUSAL_LM_MAPPING._extra_content[CountingConfig]


def _config(heads_of: str) -> CountingConfig:
    return CountingConfig(
        vocab_size=64,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        heads_of=heads_of,
        architectures=["CountingForCausalLM"],
    )


@pytest.mark.parametrize(
    ("heads_of", "why"),
    [
        ("fixed", "transformers' code does not compute a part of it: "),
        ("narrow", "of a part, transformers' code gives layer 0 heads that are 4 and 4 wide, where those of the model are 8 and 8"),
    ],
)  # fmt: skip
def test_code_that_takes_no_part_is_refused_by_name(heads_of: str, why: str, tmp_path: Path) -> None:
    config = _config(heads_of)
    config.save_pretrained(tmp_path)
    assert shard_of(config, 0, 2).by_plan, "by its plan it could be"

    def start() -> None:
        check_split(replace(config_of(tmp_path), tensor_parallel_size=2))

    def size() -> None:
        model_size(tmp_path, dtype="float32", max_batch_tokens=16, max_batch_requests=2, num_ranks=2)

    for refuse in (start, size):
        with pytest.raises(ConfigError) as caught:
            refuse()
        assert caught.value.option == "--tensor-parallel-size"
        assert caught.value.problem.startswith(f"CountingForCausalLM cannot be split among 2 ranks: {why}")


def test_one_rank_of_such_a_family_can_be_sized(tmp_path: Path) -> None:
    _config("fixed").save_pretrained(tmp_path)
    sized = model_size(tmp_path, dtype="float32", max_batch_tokens=16, max_batch_requests=2)
    assert [one.num_kv_heads for one in sized.shapes] == [KV_HEADS] * 2


@pytest.mark.parametrize("name", PLAN_FAMILIES)
def test_code_that_takes_a_part_is_not_refused(name: str) -> None:
    config = PLAN_FAMILIES[name].config
    for size in (2, 4):
        check_part(config, shard_of(config, size - 1, size))
