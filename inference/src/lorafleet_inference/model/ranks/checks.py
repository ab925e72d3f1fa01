"""Which models can be split among ranks, and what each rank holds of one."""

import copy

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from lorafleet_common.errors import ConfigError
from lorafleet_inference.model.decoder.spec import SPECS, width_of_head
from lorafleet_inference.model.ranks.split import Shard

OPTION = "--tensor-parallel-size"
_WIDTHS = ("intermediate_size", "moe_intermediate_size")


def shard_of(config: PreTrainedConfig, rank: int, size: int) -> Shard:
    """Return what a rank holds of a model with this config.

    Raises:
        ConfigError: its family, or a model of its sizes, cannot be split among so many ranks.
    """
    check_splits(config, size)
    return Shard(rank, size, config.num_attention_heads, config.num_key_value_heads, config.vocab_size)


def check_splits(config: PreTrainedConfig, size: int) -> None:
    """See whether a model can be split among so many ranks.

    Raises:
        ConfigError: it cannot; names the architecture and the cause.
    """
    name = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__
    why = _why_not(config, name, size)
    if why is not None:
        raise unsplit(config, size, why)


def unsplit(config: PreTrainedConfig, size: int, why: str) -> ConfigError:
    """Return the refusal of a model that cannot be split among so many ranks."""
    name = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__
    return ConfigError(OPTION, f"{name} cannot be split among {size} ranks: {why}")


def _why_not(config: PreTrainedConfig, name: str, size: int) -> str | None:
    if name not in SPECS:
        return "only families of the decoder of our own can, and this is none of them"
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % size:
        return f"it has {heads} attention heads"
    if kv_heads % size and size % kv_heads:
        return f"it has {kv_heads} key-value heads, which can be neither shared out nor repeated evenly"
    for field in _WIDTHS:
        width = getattr(config, field, None)
        if width is not None and width % size:
            return f"its {field} is {width}"
    return None


def config_of_rank(config: PreTrainedConfig, shard: Shard) -> PreTrainedConfig:
    """Return the config of the smaller model that a rank holds."""
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
