"""A model whose layers were run once: attention goes through ours, and LoRA has a place in each module. What would be wrong is refused."""

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from lorafleet_common.errors import ConfigError
from lorafleet_inference.engine.messages import ModelFacts
from lorafleet_inference.model.attention import NAME, LayerShape, Probe, attending
from lorafleet_inference.model.decoder import Decoder
from lorafleet_inference.model.facts import model_facts
from lorafleet_inference.model.families import PATCHES
from lorafleet_inference.model.ranks.split import Shard
from lorafleet_inference.model.rope import LengthRopes

logger = logging.getLogger(__name__)
PROBE_TOKENS = 5
NOT_OURS = "its attention is not written against transformers' attention interface"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that was probed."""

    model: PreTrainedModel | Decoder
    facts: ModelFacts
    shapes: tuple[LayerShape, ...]
    """By layer."""
    ropes: LengthRopes | None = None
    """Of rotary frequencies that depend on the length."""
    shard: Shard | None = None
    """What of the model this is, where it is on several ranks."""
    rank_facts: ModelFacts | None = None
    """Of that part, where `facts` are of the whole model."""

    @property
    def held(self) -> ModelFacts:
        """The facts of what is here: by its widths, pools and extras are laid out."""
        return self.rank_facts or self.facts

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights, KV and adapters."""
        return self.model.dtype


def check_model(model: PreTrainedModel, *, max_model_len: int | None = None, own_decoder: bool = False) -> LoadedModel:
    """Give a model of a family with a patch our attention, and probe it. `own_decoder`: our own code takes its weights over.

    Raises:
        ConfigError: its attention or its layers would be computed wrongly.
    """
    facts = model_facts(model, max_model_len=max_model_len)
    shapes = shapes_of(model, facts)
    made: PreTrainedModel | Decoder = model
    if own_decoder:
        made = Decoder(model).eval()
        if _probe(made, facts) != shapes:
            raise _refused(facts, "the decoder of our own has other heads or windows than transformers' code")
    facts = _within_windows(model.config.get_text_config(), facts, shapes)
    ropes, facts = _length_ropes(made, facts)
    return LoadedModel(made, facts, shapes, ropes)


def shapes_of(model: PreTrainedModel, facts: ModelFacts) -> tuple[LayerShape, ...]:
    """Give a model of a family with a patch our attention, and return what each layer asks of attention.

    Raises:
        ConfigError: its attention or its layers would be computed wrongly.
    """
    patch = PATCHES.get(facts.model_type)
    if patch is not None:
        patch(model, facts.max_model_len)
    elif not model._can_set_attn_implementation():  # noqa: SLF001  transformers has no public name for it
        raise _refused(facts, NOT_OURS)
    return _probe(model, facts)


def attention_of(config: PreTrainedConfig) -> str:
    """Return the attention that transformers makes a model of this config with."""
    return "eager" if config.model_type in PATCHES else NAME


def _refused(facts: ModelFacts, why: str) -> ConfigError:
    return ConfigError("--model", f"{facts.architecture} is not supported: {why}")


@torch.inference_mode()
def _probe(model: PreTrainedModel | Decoder, facts: ModelFacts) -> tuple[LayerShape, ...]:
    """Run a few tokens and see that every layer attends through us and every adaptable module sees every token."""
    seen: Counter[str] = Counter()
    hooks = []
    for module in facts.modules:

        def count(_: Any, args: tuple[torch.Tensor, ...], name: str = module.name) -> None:
            seen[name] += args[0].numel() // args[0].shape[-1]

        hooks.append(model.get_submodule(module.name).register_forward_pre_hook(count))
    probe = Probe()
    num_tokens = getattr(model.get_input_embeddings(), "num_embeddings", facts.vocab_size)  # those of a rank's part
    ids = torch.arange(PROBE_TOKENS, device=model.device)[None] % num_tokens
    positions = torch.arange(PROBE_TOKENS, device=model.device)[None]
    with attending(probe):
        model(input_ids=ids, position_ids=positions, use_cache=False)
    for hook in hooks:
        hook.remove()
    layers = [layer for layer, _ in probe.calls]
    if sorted(layers) != list(range(facts.num_layers)):
        raise _refused(facts, f"{facts.num_layers} layers, but attention was called for {sorted(layers)}")
    if not all(shape.causal for _, shape in probe.calls):
        raise _refused(facts, "a layer attends to later tokens")
    odd = [module.name for module in facts.modules if seen[module.name] != PROBE_TOKENS]
    if odd:
        raise _refused(facts, f"module {odd[0]} does not see each token once")
    return tuple(shape for _, shape in sorted(probe.calls, key=lambda call: call[0]))


def _cut(facts: ModelFacts, limit: int, why: str) -> ModelFacts:
    """Return the facts with a context of at most `limit` tokens: beyond it, something would be computed wrongly."""
    if facts.max_model_len <= limit:
        return facts
    logger.warning(
        "%s: %s, so the context is cut from %d to %d tokens", facts.architecture, why, facts.max_model_len, limit
    )
    rope = facts.length_rope
    kept = rope if rope is not None and rope.limit < limit else None
    return msgspec.structs.replace(facts, max_model_len=limit, length_rope=kept)


def _length_ropes(model: PreTrainedModel | Decoder, facts: ModelFacts) -> tuple[LengthRopes | None, ModelFacts]:
    rope = facts.length_rope
    if rope is None:
        return None, facts
    ropes = LengthRopes(model, rope)
    if ropes.are_exact():
        return ropes, facts
    return None, _cut(facts, rope.limit, f"its {rope.kind} rotary embedding is not made as transformers makes others")


def _within_windows(config: Any, facts: ModelFacts, shapes: tuple[LayerShape, ...]) -> ModelFacts:
    """Cut the context to where a window makes no difference, if transformers knows of it in the mask only."""
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk is not None:
        facts = _cut(facts, chunk, f"it attends in chunks of {chunk} tokens")
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return facts
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * len(shapes)
    for layer, (kind, shape) in enumerate(zip(kinds, shapes, strict=True)):
        if kind == "sliding_attention" and shape.sliding_window is None:
            return _cut(facts, window, f"layer {layer} does not pass on its window")
    return facts
