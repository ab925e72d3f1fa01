"""Sees by shapes alone, before any weight is read, that transformers' code computes a rank's part of a model."""

import copy
import logging

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from lorafleet_inference.model import experts
from lorafleet_inference.model.attention import LayerShape, register
from lorafleet_inference.model.base_files import first_sentence
from lorafleet_inference.model.checked import attention_of, shapes_of
from lorafleet_inference.model.facts import model_facts
from lorafleet_inference.model.ranks.checks import unsplit
from lorafleet_inference.model.ranks.narrow import narrow
from lorafleet_inference.model.ranks.split import Shard

logger = logging.getLogger(__name__)


def check_part(config: PreTrainedConfig, shard: Shard) -> None:
    """Run some tokens without numbers through the whole model and through a rank's part, of a family that is split by a plan.

    Raises:
        ConfigError: the code of the family takes no part of it, or makes other heads of one; names the architecture and the cause.
    """
    assert shard.by_plan, "the decoder of our own takes its widths from the config"
    try:
        whole = _shapes(config)
    except Exception:  # whatever its code does not do without numbers
        logger.debug("%s does not run without numbers", config.model_type, exc_info=True)
        return
    try:
        part = _shapes(config, shard)
    except Exception as error:
        why = f"transformers' code does not compute a part of it: {first_sentence(error)}"
        raise unsplit(config, shard.size, why) from error
    for layer, (of_part, of_whole) in enumerate(zip(part, whole, strict=True)):
        why_not = _why_not(of_part, of_whole, shard)
        if why_not is not None:
            raise unsplit(config, shard.size, f"of a part, transformers' code gives layer {layer} {why_not}")


def _shapes(config: PreTrainedConfig, shard: Shard | None = None) -> tuple[LayerShape, ...]:
    register()
    experts.register()
    with torch.device("meta"), torch.inference_mode():
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), attn_implementation=attention_of(config), experts_implementation=experts.SIZED
        ).eval()
        if shard is not None:
            narrow(model, shard)
        return shapes_of(model, model_facts(model))


def _why_not(part: LayerShape, whole: LayerShape, shard: Shard) -> str | None:
    """Return what is wrong with the heads of a part; None: they are some of the whole ones, or all."""
    widths, wanted = (part.key_width, part.value_width), (whole.key_width, whole.value_width)
    if widths != wanted:
        return (
            f"heads that are {widths[0]} and {widths[1]} wide, where those of the model are {wanted[0]} and {wanted[1]}"
        )
    some = max(1, whole.num_kv_heads // shard.size)
    if part.num_kv_heads not in (some, whole.num_kv_heads):
        return f"{part.num_kv_heads} of {whole.num_kv_heads} key-value heads"
    return None
