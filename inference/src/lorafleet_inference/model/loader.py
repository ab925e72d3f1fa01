"""Loads a base model and refuses, by name, what would be computed wrongly."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from lorafleet_common.errors import ConfigError
from lorafleet_inference.config import EngineConfig, Quantization
from lorafleet_inference.cores import usable_cores
from lorafleet_inference.device import cuda
from lorafleet_inference.kernels.packed import can_pack, pack_linears
from lorafleet_inference.model import experts
from lorafleet_inference.model.attention import NAME, register
from lorafleet_inference.model.base_files import (
    CONFIG,
    architecture_of,
    bare_model,
    check_weights,
    first_sentence,
    read_base_config,
    read_generation_config,
    read_quantization,
    refused,
    without_adapter,
)
from lorafleet_inference.model.checked import NOT_OURS, LoadedModel, attention_of, check_model
from lorafleet_inference.model.decoder import Decoder, why_not
from lorafleet_inference.model.facts import model_facts
from lorafleet_inference.model.pooling import pooling_of
from lorafleet_inference.model.quantization.cut import CutError
from lorafleet_inference.model.quantization.loading import QuantizedFiles, quantized_files
from lorafleet_inference.model.quantization.method import QuantizationError
from lorafleet_inference.model.ranks.checks import OPTION, config_of_rank, shard_of, unsplit
from lorafleet_inference.model.ranks.narrow import part_of_kind, split_words
from lorafleet_inference.model.ranks.rehearsal import check_part
from lorafleet_inference.model.ranks.shards import parts_of
from lorafleet_inference.model.ranks.split import EMBEDDINGS, EVERYTHING, HEADS, Shard
from lorafleet_inference.model.reading import Reading, Tell, counting, nobody, sizes_of

logger = logging.getLogger(__name__)


def load_model(config: EngineConfig, rank: int = 0, tell: Tell = nobody) -> LoadedModel:
    """Load the weights and probe the model. `rank`: whose part of them, where the config asks for several ranks; `tell`: how
    much of them has been read.

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
    places = check_weights(folder)
    files = _quantized_files(folder, base, places, config.quantization)
    reading = Reading(sizes_of(places), tell)
    with counting(reading):
        model = _read(folder, base, dtype=_dtype(config, device), device=device, quantized=files, shard=shard)
    if files is not None:
        _fill(files, model, device, base, shard, reading=reading)
    reading.end()
    _check_finite(model)
    own = _is_own(config, model) if shard is None else not shard.by_plan
    loaded = check_model(model.eval(), max_model_len=config.max_model_len, own_decoder=own)
    if shard is not None:
        _split_words(loaded.model, shard, places, files)
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
    bare = bare_model(folder, config)
    try:
        return quantized_files(bare, method, places)
    except QuantizationError as error:
        raise refused(architecture_of(folder), str(error)) from error


def _fill(
    files: QuantizedFiles,
    model: PreTrainedModel,
    device: torch.device,
    base: PreTrainedConfig,
    shard: Shard | None,
    *,
    reading: Reading,
) -> None:
    name = type(model).__name__
    try:
        cut, rows = (None, None) if shard is None else (shard.cut, shard.words.rows)
        files.fill(model, device, model.dtype, cut, rows, have_read=reading.have_read)
    except CutError as error:
        assert shard is not None, "nothing else is cut"
        raise unsplit(base, shard.size, str(error)) from error
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
    generation = read_generation_config(folder)
    taken = quantized.mark(config) if quantized is not None else frozenset()
    hidden = quantized.taken if quantized is not None and quantized.stacks else None
    try:
        with (
            without_adapter(folder) as view,
            _without_reports(),
            _source(view, config, shard, hidden) as (read, what),
        ):
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
    except Exception as error:
        logger.debug("loading %s", folder, exc_info=True)
        if isinstance(error, KeyError) and error.args == (NAME,):
            # a family that looks its attention up in a table of its own
            raise ConfigError("--model", f"{name} is not supported: {NOT_OURS}") from error
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
    if generation is not None:  # transformers goes on without one that it cannot read
        model.generation_config = generation
    return cast("PreTrainedModel", model)


def _shard(config: EngineConfig, base: PreTrainedConfig, rank: int) -> Shard | None:
    if config.tensor_parallel_size == 1:
        return None
    return shard_of(base, rank, config.tensor_parallel_size, config.decoder)


def check_split(config: EngineConfig) -> None:
    """See from config.json and the headers of the weights whether the model can be split among the ranks that are asked for.

    Raises:
        ConfigError: it cannot, or there is no such model.
    """
    folder = Path(config.model)
    base = read_base_config(folder)
    shard = _shard(config, base, 0)
    if shard is not None and shard.by_plan:
        check_part(base, shard)
    if shard is None or read_quantization(folder, config.quantization) is None:
        return
    files = _quantized_files(folder, base, check_weights(folder), config.quantization)
    assert files is not None, "it is quantised"
    try:
        files.check_cuts(shard.cut)
    except CutError as error:
        raise unsplit(base, shard.size, str(error)) from error


@contextmanager
def _source(
    folder: Path, config: PreTrainedConfig, shard: Shard | None, taken: Collection[str] | None
) -> Iterator[tuple[Callable[..., Any], dict[str, Any]]]:
    """Yield the function of transformers that reads a model, and what tells it of which.

    `taken`: tensors that it must not see, as it would have parts of experts that it does not know stacked.
    """
    if shard is None and taken is None:
        yield AutoModelForCausalLM.from_pretrained, {"pretrained_model_name_or_path": folder, "config": config}
        return
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if shard is not None and shard.by_plan:
        kind = part_of_kind(kind, shard)
    with parts_of(folder, shard or EVERYTHING, taken or ()) as parts:
        what = {"config": config if shard is None else config_of_rank(config, shard), "state_dict": parts}
        yield kind.from_pretrained, {"pretrained_model_name_or_path": None, **what}


def _as_part(loaded: LoadedModel, config: PreTrainedConfig, shard: Shard) -> LoadedModel:
    """Return the loaded part of a model with the facts of the whole."""
    with torch.device("meta"):
        whole = model_facts(AutoModelForCausalLM.from_config(config))
    # what adapters hold of embedding and head is whole on every rank
    held = msgspec.structs.replace(loaded.facts, vocab_size=whole.vocab_size, side_modules=whole.side_modules)
    of_words = {one.name for one in whole.side_modules}
    kept = zip(held.whole_modules, whole.whole_modules, strict=True)
    held = msgspec.structs.replace(
        held, whole_modules=tuple(theirs if theirs.name in of_words else ours for ours, theirs in kept)
    )
    facts = msgspec.structs.replace(
        held, modules=whole.modules, whole_modules=whole.whole_modules, experts=whole.experts
    )
    return replace(loaded, facts=facts, rank_facts=held, shard=shard)


def _split_words(
    model: PreTrainedModel | Decoder, shard: Shard, places: Mapping[str, Path], files: QuantizedFiles | None
) -> None:
    """Have embedding and head know that they are a rank's, and where the whole ones are."""
    dtype = model.dtype

    def stored(modules: Sequence[str], parameter: str) -> torch.Tensor:
        key = next(key for key in places if key.endswith(tuple(f"{one}.{parameter}" for one in modules)))
        with safe_open(places[key], framework="pt") as file:
            return cast("torch.Tensor", file.get_tensor(key).to(dtype))

    def embedding() -> torch.Tensor:
        return stored(EMBEDDINGS, "weight")

    def head() -> torch.Tensor:
        return stored(HEADS, "weight") if files is None or files.head is None else files.read_head(dtype)

    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(inputs, torch.nn.Embedding)
    assert isinstance(outputs, torch.nn.Linear)
    heads = embedding if outputs.weight is inputs.weight else head
    if isinstance(model, Decoder):
        model.split_words(shard.words, embedding, heads)
    else:
        split_words(model, shard, embedding, heads, lambda: stored(HEADS, "bias"))


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
    is_own = config.decoder == "own" or (
        config.decoder == "auto" and why is None and _is_faster(config, model.device, model.dtype)
    )
    logger.info("the layers are computed by %s", "the decoder of our own" if is_own else "transformers' code")
    return is_own


def _is_faster(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the decoder of our own was measured to be faster there than transformers' code."""
    if device.type == "cuda":
        return config.gpu_kernels
    return device.type == "cpu" and dtype == torch.float32 and config.cpu_kernels


def device_of(config: EngineConfig, rank: int = 0) -> torch.device:
    """Return the device of a rank, which its process uses from now on.

    Raises:
        ConfigError: it is not there.
    """
    if config.device == "cuda" and not cuda.is_there():
        raise ConfigError("--device", "cuda was asked for and no CUDA device is usable")
    if not uses_cuda(config):
        return torch.device("cpu")
    if config.tensor_parallel_size > 1:
        count = cuda.count()
        if count < config.ranks_per_host:
            raise ConfigError(
                OPTION, f"{config.ranks_per_host} ranks of a host need as many GPUs, and {count} are usable"
            )
        return cuda.choose(rank % config.ranks_per_host)
    return cuda.choose()


def uses_cuda(config: EngineConfig) -> bool:
    """Whether the model goes to a CUDA device, if there is one that can be used."""
    return config.device == "cuda" or (config.device == "auto" and cuda.is_there())


def _dtype(config: EngineConfig, device: torch.device) -> Any:
    if config.dtype == "auto":
        return "auto" if device.type == "cuda" else torch.float32
    return getattr(torch, config.dtype)
