"""Which models can be split among ranks, and what each rank holds of one."""

import copy
from dataclasses import replace

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lorafleet_common.errors import ConfigError
from lorafleet_inference.config import DecoderChoice
from lorafleet_inference.model.base_files import first_sentence, refused
from lorafleet_inference.model.decoder.spec import SPECS, activation_of, width_of_head
from lorafleet_inference.model.ranks.narrow import head_width, why_not_narrow
from lorafleet_inference.model.ranks.norms import norm_splits
from lorafleet_inference.model.ranks.plans import PlanError, splits_of_plan
from lorafleet_inference.model.ranks.split import Shard

OPTION = "--tensor-parallel-size"
_WIDTHS = ("intermediate_size", "moe_intermediate_size")


def shard_of(config: PreTrainedConfig, rank: int, size: int, decoder: DecoderChoice = "auto") -> Shard:
    """Return what a rank holds of a model with this config. `decoder`: whose code computes it, as `EngineConfig` has it.

    Raises:
        ConfigError: its family, or a model of its sizes, cannot be split among so many ranks, or there is none of its config;
            names the architecture and the cause.
    """
    is_own = decoder != "transformers" and _has_decoder(config)
    if decoder == "own" and not is_own:
        raise ConfigError("--decoder", f"{_name(config)} has no decoder of our own")
    try:
        splits = None if is_own else splits_of_plan(config)
    except PlanError as error:
        raise unsplit(config, size, str(error)) from error
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    shard = Shard(rank, size, heads, kv_heads, config.vocab_size)
    if splits is not None:
        shard = replace(shard, splits=splits, by_plan=True)
    why = _why_not(config, shard)
    if why is None and shard.by_plan:
        model = _bare(config)
        shard = replace(shard, splits={**shard.splits, **norm_splits(model, shard, head_width(model, shard))})
        why = why_not_narrow(model, shard)
    if why is not None:
        raise unsplit(config, size, why)
    return shard


def unsplit(config: PreTrainedConfig, size: int, why: str) -> ConfigError:
    """Return the refusal of a model that cannot be split among so many ranks."""
    return ConfigError(OPTION, f"{_name(config)} cannot be split among {size} ranks: {why}")


def _name(config: PreTrainedConfig) -> str:
    name: str = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__
    return name


def _bare(config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model without its weights."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise refused(_name(config), first_sentence(error)) from error
    return model


def _has_decoder(config: PreTrainedConfig) -> bool:
    spec = SPECS.get(_name(config))
    return spec is not None and activation_of(config, spec) is not None


def _why_not(config: PreTrainedConfig, shard: Shard) -> str | None:
    size, heads, kv_heads = shard.size, shard.num_heads, shard.num_kv_heads
    if heads % size:
        return f"it has {heads} attention heads"
    if kv_heads % size and size % kv_heads:
        return f"it has {kv_heads} key-value heads, which can be neither shared out nor repeated evenly"
    for field in _WIDTHS:
        widths = getattr(config, field, None)
        for width in widths if isinstance(widths, list | tuple) else (widths,):  # of all layers, or of each
            if width is not None and width % size:
                return f"its {field} is {width}"
    return None


def config_of_rank(config: PreTrainedConfig, shard: Shard) -> PreTrainedConfig:
    """Return the config of the smaller model that a rank holds; of one that is split by a plan, the same (`narrow.py`)."""
    if shard.by_plan:
        return copy.deepcopy(config)
    made = copy.deepcopy(config)
    made.head_dim = width_of_head(config)
    made.vocab_size, made.pad_token_id = shard.words.num_held, None  # a token that may be another rank's
    made.num_attention_heads = shard.num_heads // shard.size
    made.num_key_value_heads = max(1, shard.num_kv_heads // shard.size)
    for field in _WIDTHS:
        width = getattr(config, field, None)
        if width is not None:
            setattr(made, field, width // shard.size)
    return made
