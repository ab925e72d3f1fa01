"""Loads a base model and refuses, by name, what would be computed wrongly."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils import logging as transformers_logging

from lorafleet_common.errors import ConfigError
from lorafleet_inference.config import EngineConfig, Quantization
from lorafleet_inference.engine.messages import ModelFacts
from lorafleet_inference.kernels.packed import can_pack, pack_linears
from lorafleet_inference.model import experts
from lorafleet_inference.model.attention import NAME, LayerShape, Probe, attending, register
from lorafleet_inference.model.base_files import (
    CONFIG,
    architecture_of,
    check_weights,
    first_sentence,
    read_base_config,
    read_quantization,
    refused,
    without_adapter,
)
from lorafleet_inference.model.decoder import Decoder, why_not
from lorafleet_inference.model.facts import model_facts
from lorafleet_inference.model.families import PATCHES
from lorafleet_inference.model.pooling import pooling_of
from lorafleet_inference.model.quantization.loading import QuantizedFiles, quantized_files
from lorafleet_inference.model.quantization.method import QuantizationError
from lorafleet_inference.model.ranks.shards import parts_of
from lorafleet_inference.model.ranks.split import OPTION, Shard, config_of_rank, quantised_and_split, shard_of
from lorafleet_inference.model.rope import LengthRopes

logger = logging.getLogger(__name__)
PROBE_TOKENS = 5
_NOT_OURS = "its attention is not written against transformers' attention interface"


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


def usable_cores() -> int:
    """Return how many cores this process may use, by affinity and by the quota of its cgroup."""
    cores = len(os.sched_getaffinity(0))
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    if quota_file.is_file():
        quota, period = quota_file.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def load_model(config: EngineConfig, rank: int = 0) -> LoadedModel:
    """Load the weights and probe the model. `rank`: whose part of them, where the config asks for several ranks.

    Raises:
        ConfigError: the folder holds no model that can be served; names the architecture and the cause.
    """
    torch.set_num_threads(config.num_threads or usable_cores())
    device = device_of(config, rank)
    register()
    experts.register()
    folder = Path(config.model)
    base = read_base_config(folder)
    shard = _shard(config, base, rank)
    files = _quantized_files(folder, base, check_weights(folder), config.quantization)
    model = _read(folder, base, dtype=_dtype(config, device), device=device, quantized=files, shard=shard)
    if files is not None:
        _fill(files, model, device)
    _check_finite(model)
    own = _is_own(config, model) if shard is None else _can_be_part(model)
    loaded = check_model(model.eval(), max_model_len=config.max_model_len, own_decoder=own)
    if shard is not None:
        loaded = _as_part(loaded, base, shard)
    if config.cpu_kernels and device.type == "cpu" and can_pack():
        pack_linears(loaded.model)
    return replace(loaded, facts=msgspec.structs.replace(loaded.facts, pooling=pooling_of(folder)))


def _quantized_files(
    folder: Path, config: PreTrainedConfig, places: Mapping[str, Path], at_load: Quantization | None
) -> QuantizedFiles | None:
    method = read_quantization(folder, at_load)
    if method is None:
        return None
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config)
    try:
        return quantized_files(bare, method, places)
    except QuantizationError as error:
        raise refused(architecture_of(folder), str(error)) from error


def _fill(files: QuantizedFiles, model: PreTrainedModel, device: torch.device) -> None:
    name = type(model).__name__
    try:
        files.fill(model, device, model.dtype)
    except QuantizationError as error:
        raise refused(name, str(error)) from error
    logger.info("%s: %d linear layers are quantised (%s)", name, len(files.modules), files.method.name)


def _read(
    folder: Path,
    config: PreTrainedConfig,
    *,
    dtype: Any,
    device: torch.device,
    quantized: QuantizedFiles | None = None,
    shard: Shard | None = None,
) -> PreTrainedModel:
    """Read all tensors of the model; none is missing, left as it was initialised, or of another shape.

    Of `quantized` layers it reads none; of the others, a rank's part where there is a `shard`.
    """
    name = architecture_of(folder)
    taken = quantized.mark(config) if quantized is not None else frozenset()
    try:
        with without_adapter(folder) as view, _without_reports(), _source(view, config, shard) as (read, what):
            model, info = read(
                **what,
                dtype=dtype,
                attn_implementation=attention_of(config),
                experts_implementation=experts.NAME,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                device_map=None if device.type == "cpu" else {"": device},
            )
            if shard is not None and (view / GENERATION_CONFIG_NAME).is_file():
                model.generation_config = GenerationConfig.from_pretrained(view)
    except Exception as error:
        logger.debug("loading %s", folder, exc_info=True)
        if isinstance(error, KeyError) and error.args == (NAME,):
            # a family that looks its attention up in a table of its own
            raise ConfigError("--model", f"{name} is not supported: {_NOT_OURS}") from error
        raise refused(name, first_sentence(error)) from error
    missing, unknown = sorted(info["missing_keys"] - taken), sorted(info["unexpected_keys"] - taken)
    for key, found, wanted in sorted(info["mismatched_keys"]):
        raise refused(name, f"tensor {key} has the shape {list(found)}, and {CONFIG} says {list(wanted)}")
    if missing:
        strange = f", and hold {_some(unknown)} that it does not have" if unknown else ""
        raise refused(name, f"the files lack {_some(missing)} of its tensors{strange}")
    if info["error_msgs"]:
        raise refused(name, first_sentence(Exception(info["error_msgs"][0])))
    if unknown:
        logger.warning("%s: the files hold %s that the model does not have; they are not used", name, _some(unknown))
    return cast("PreTrainedModel", model)


def _shard(config: EngineConfig, base: PreTrainedConfig, rank: int) -> Shard | None:
    if config.tensor_parallel_size == 1:
        return None
    if config.decoder == "transformers":
        raise ConfigError("--decoder", "transformers' code is not split among ranks, only the decoder of our own is")
    if read_quantization(Path(config.model), config.quantization) is not None:
        raise quantised_and_split(base, config.tensor_parallel_size)
    return shard_of(base, rank, config.tensor_parallel_size)


def check_split(config: EngineConfig) -> None:
    """See from config.json alone whether the model can be split among the ranks that are asked for.

    Raises:
        ConfigError: it cannot, or there is no such model.
    """
    _shard(config, read_base_config(Path(config.model)), 0)


def _can_be_part(model: PreTrainedModel) -> bool:
    """Return True; raises ConfigError for a model that the decoder of our own cannot compute."""
    why = why_not(model)
    if why is not None:
        raise ConfigError(OPTION, f"{type(model).__name__} cannot be split: there is no decoder of our own, as {why}")
    return True


@contextmanager
def _source(
    folder: Path, config: PreTrainedConfig, shard: Shard | None
) -> Iterator[tuple[Callable[..., Any], dict[str, Any]]]:
    """Yield the function of transformers that reads a model, and what tells it of which."""
    if shard is None:
        yield AutoModelForCausalLM.from_pretrained, {"pretrained_model_name_or_path": folder, "config": config}
        return
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with parts_of(folder, shard) as parts:
        what = {"config": config_of_rank(config, shard), "state_dict": parts}
        yield kind.from_pretrained, {"pretrained_model_name_or_path": None, **what}


def _as_part(loaded: LoadedModel, config: PreTrainedConfig, shard: Shard) -> LoadedModel:
    """Return the loaded part of a model with the facts of the whole."""
    with torch.device("meta"):
        whole = model_facts(AutoModelForCausalLM.from_config(config))
    facts = msgspec.structs.replace(
        loaded.facts, modules=whole.modules, whole_modules=whole.whole_modules, experts=whole.experts
    )
    return replace(loaded, facts=facts, rank_facts=loaded.facts, shard=shard)


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


@contextmanager
def _without_reports() -> Iterator[None]:
    """What transformers would print of a load in tables is said in one sentence by `_read`."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


@torch.inference_mode()
def _check_finite(model: PreTrainedModel) -> None:
    for name, tensor in model.named_parameters():
        if tensor.numel() and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
            raise refused(
                type(model).__name__,
                f"tensor {name} holds values that are not finite in {str(tensor.dtype).removeprefix('torch.')}",
            )


def _is_own(config: EngineConfig, model: PreTrainedModel) -> bool:
    """Whether the decoder of our own computes the layers: where that is asked for, or it was measured to be faster."""
    why = why_not(model)
    if config.decoder == "own" and why is not None:
        raise ConfigError("--decoder", f"{type(model).__name__} has no decoder of our own: {why}")
    is_measured = model.device.type == "cpu" and model.dtype == torch.float32 and config.cpu_kernels
    is_own = config.decoder == "own" or (config.decoder == "auto" and why is None and is_measured)
    logger.info("the layers are computed by %s", "the decoder of our own" if is_own else "transformers' code")
    return is_own


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
        raise _refused(facts, _NOT_OURS)
    return _probe(model, facts)


def attention_of(config: PreTrainedConfig) -> str:
    """Return the attention that transformers makes a model of this config with."""
    return "eager" if config.model_type in PATCHES else NAME


def _refused(facts: ModelFacts, why: str) -> ConfigError:
    return ConfigError("--model", f"{facts.architecture} is not supported: {why}")


def device_of(config: EngineConfig, rank: int = 0) -> torch.device:
    """Return the device of a rank, which its process uses from now on.

    Raises:
        ConfigError: it is not there.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device", "cuda was asked for and no CUDA device is usable")
    if not uses_cuda(config):
        return torch.device("cpu")
    if config.tensor_parallel_size > 1:
        count = torch.cuda.device_count()
        if count < config.tensor_parallel_size:
            raise ConfigError(OPTION, f"{config.tensor_parallel_size} ranks need as many GPUs, and {count} are usable")
        torch.cuda.set_device(rank)
    return torch.device("cuda", torch.cuda.current_device())


def uses_cuda(config: EngineConfig) -> bool:
    """Whether the model goes to a CUDA device, if there is one that can be used."""
    return config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())


def _dtype(config: EngineConfig, device: torch.device) -> Any:
    if config.dtype == "auto":
        return "auto" if device.type == "cuda" else torch.float32
    return getattr(torch, config.dtype)


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
    ids = torch.arange(PROBE_TOKENS, device=model.device)[None] % facts.vocab_size
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
