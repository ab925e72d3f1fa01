"""Whether a folder holds a base model, looked at before anything is loaded: config.json, and the headers of the weights.

Adapter files beside a base are not of the base and are not looked at.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import GENERATION_CONFIG_NAME

from lorafleet_common.errors import ConfigError
from lorafleet_inference.adapters.headers import read_header, what_it_is_instead
from lorafleet_inference.config import Quantization
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.model.quantization.at_load import AtLoad
from lorafleet_inference.model.quantization.method import FIELD, Method, QuantizationError
from lorafleet_inference.model.quantization.methods import method_of

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth")
ADAPTER_FILES = "adapter_*"
_MAX_SHOWN = 300


def refused(what: str, why: str) -> ConfigError:
    """Return the refusal of a base model."""
    return ConfigError("--model", f"{what} cannot be loaded: {why}")


def first_sentence(error: BaseException) -> str:
    """Return the first line of what an error says, shortened."""
    if isinstance(error, KeyError):
        return f"{error} is nothing that transformers knows"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


def read_base_config(folder: Path) -> PreTrainedConfig:
    """Return the config of a base model, without what it says of quantisation.

    Raises:
        ConfigError: there is none, it cannot be understood, or it is of a model that cannot be served.
    """
    fields = _json(folder, CONFIG)
    name = architecture_of(folder)
    read_quantization(folder)
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:
        if fields.get("auto_map"):
            raise refused(name, f"it needs Python code of its own ({CONFIG}: auto_map), which is not run") from error
        raise refused(name, first_sentence(error)) from error
    if getattr(config, "is_encoder_decoder", False) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise refused(name, f"{config.model_type} is no decoder-only language model that transformers knows")
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and longest < 0:
        raise refused(name, f"max_position_embeddings is {longest}")
    for part in (config, config.get_text_config()):
        if hasattr(part, FIELD):
            delattr(part, FIELD)
    return config


def read_generation_config(folder: Path) -> GenerationConfig | None:
    """Return how a base model generates by its own files, which tokens end its answers above all; None: they do not say.

    Raises:
        ConfigError: the file cannot be understood.
    """
    if not (folder / GENERATION_CONFIG_NAME).is_file():
        return None
    _json(folder, GENERATION_CONFIG_NAME)
    try:
        return GenerationConfig.from_pretrained(folder)
    except Exception as error:
        raise refused(architecture_of(folder), f"{GENERATION_CONFIG_NAME}: {first_sentence(error)}") from error


@contextmanager
def making_model(folder: Path) -> Iterator[None]:
    """Around having transformers make a model of a base's config.

    Raises:
        ConfigError: there is no model of such a config.
    """
    try:
        yield
    except Exception as error:
        raise refused(architecture_of(folder), first_sentence(error)) from error


def bare_model(folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model of a base's config without its weights, on the meta device.

    Raises:
        ConfigError: there is no model of such a config.
    """
    with making_model(folder), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def read_quantization(folder: Path, at_load: Quantization | None = None) -> Method | None:
    """Return how the weights of a base are quantised, in its files or (`at_load`) when they are read; None: they are not.

    Raises:
        ConfigError: in a way that cannot be served, or twice.
    """
    name = architecture_of(folder)
    try:
        method = method_of(_json(folder, CONFIG))
    except QuantizationError as error:
        raise refused(name, str(error)) from error
    if at_load is None:
        return method
    if method is not None:
        raise ConfigError("--quantization", f"{name} is quantised already ({method.name})")
    return AtLoad(at_load)


def architecture_of(folder: Path) -> str:
    """Return what messages call the model: its architecture, or the folder where that is not known."""
    try:
        names = json.loads((folder / CONFIG).read_bytes())["architectures"]
        return str(names[0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return str(folder)


def check_weights(folder: Path) -> dict[str, Path]:
    """Read the headers of the weights; return the file of each tensor.

    Raises:
        ConfigError: a file is missing, cut off, or no safetensors file.
    """
    if (folder / WEIGHTS).exists():
        names = [WEIGHTS]
    elif (folder / INDEX).exists():
        index = _json(folder, INDEX).get("weight_map")
        if not isinstance(index, dict) or not index or not all(isinstance(one, str) for one in index.values()):
            raise refused(str(folder), f"{INDEX} has no weight_map")
        names = sorted(set(index.values()))
    else:
        pickle = next((path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))), None)
        if pickle is not None:
            raise refused(
                str(folder), f"its weights are in {pickle} only, a pickle that could run code; {WEIGHTS} is read"
            )
        raise refused(str(folder), f"it has no {WEIGHTS}")
    places: dict[str, Path] = {}
    for name in names:
        if Path(name).name != name:
            raise refused(str(folder), f"{INDEX} names {name}, which is not a file of the folder")
        try:
            places |= dict.fromkeys(read_header(folder / name), folder / name)
        except AdapterError as error:
            raise refused(str(folder), error.message) from error
    return places


@contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """Give a view of the folder that shows no file of an adapter: transformers would attach one to the base."""
    if not any(folder.glob(ADAPTER_FILES)):
        yield folder
        return
    with TemporaryDirectory(prefix="lorafleet-base-") as view:
        for path in folder.iterdir():
            if not path.match(ADAPTER_FILES):
                (Path(view) / path.name).symlink_to(path.resolve())
        yield Path(view)


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError as error:
        why = f"it has no {name}"
        if (folder / "adapter_config.json").is_file():
            why += "; it is the folder of an adapter"
        raise refused(str(folder), why) from error
    except OSError as error:
        raise refused(str(folder), f"{name} cannot be read: {error.strerror}") from error
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise refused(str(folder), f"{name} is {what_it_is_instead(data) or 'not JSON'}") from error
    if not isinstance(document, dict):
        raise refused(str(folder), f"{name} is no JSON object")
    return document
