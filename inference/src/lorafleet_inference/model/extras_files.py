"""Reads what adapters hold beside rows of A and B, and brings it into the form of `extras.py`."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.pytorch_utils import Conv1D

from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.types import AdapterPlan, LoraSite
from lorafleet_inference.engine.messages import ModelFacts
from lorafleet_inference.errors import AdapterError
from lorafleet_inference.kernels.packed import plain_weight
from lorafleet_inference.model.extras import Extra, Extras

Read = Callable[[str], torch.Tensor]
"""A tensor of the adapter by its name, float32, on the CPU."""


def num_extra_elements(plan: AdapterPlan, facts: ModelFacts) -> int:
    """Return how many elements an adapter's extras have, without reading them."""
    widths = {one.name: (one.in_features, one.out_features) for one in (*facts.modules, *facts.side_modules)}
    whole = {(one.name, name): shape for one in facts.whole_modules for name, shape in one.parameters}
    total = 0
    for site in plan.side_sites:
        total += site.rank * sum(widths[site.module])
    for site in (*plan.sites, *plan.side_sites):
        vectors = 2 * (site.magnitude_key is not None) + (site.b_bias_key is not None)
        total += vectors * widths[site.module][1]
    for own in plan.own:
        total += torch.Size(whole[own.module, own.parameter]).numel()
    return total


def load_extras(plan: AdapterPlan, model: torch.nn.Module, dtype: torch.dtype) -> Extras:
    """Read the extras of a validated adapter.

    Raises:
        AdapterError: ARTIFACT_INVALID when the files are not what validation saw.
    """
    sites = [site for site in plan.sites if site.magnitude_key is not None or site.b_bias_key is not None]
    if not (sites or plan.side_sites or plan.own):
        return {}
    read = _reader(plan.directory, plan.files)
    own: dict[str, dict[str, torch.Tensor]] = {}
    for one in plan.own:
        own.setdefault(one.module, {})[one.parameter] = read(one.key)
    # a bias alone is an offset, so that it can stand beside LoRA on the same module
    biases = {name: tensors["bias"] for name, tensors in own.items() if "weight" not in tensors}
    extras = {name: Extra(**tensors) for name, tensors in own.items() if name not in biases}
    for site in (*sites, *plan.side_sites):
        module = model.get_submodule(site.module)
        extras[site.module] = _of_site(site, module, read, biases.get(site.module), is_side=site in plan.side_sites)
    for name in biases.keys() - extras.keys():
        extras[name] = Extra(offset=biases[name] - _bias(model.get_submodule(name)))
    return {name: extra.map(lambda tensor: tensor.to(dtype).contiguous()) for name, extra in extras.items()}


def _of_site(site: LoraSite, module: torch.nn.Module, read: Read, bias: torch.Tensor | None, *, is_side: bool) -> Extra:
    """What a site needs beside rows; `bias`: the adapter's own.

    y = W x + b + s B A x is what LoRA gives. With DoRA, PEFT gives b + m (W x + s B A x), m = magnitude / norm of the rows
    of W + s B A.
    """
    a, b = read(site.a_key), read(site.b_key)
    extra = Extra()
    if is_side:
        extra.a = a.t() if isinstance(module, torch.nn.Embedding) else a
        extra.b = b.t() * site.scale
    if site.magnitude_key is not None:
        norm = torch.linalg.vector_norm(_as_linear(module) + site.scale * (b @ a), dim=1)
        extra.scale = read(site.magnitude_key).flatten() / norm
    kept = 1.0 if extra.scale is None else extra.scale
    offset = (_bias(module) if bias is None else bias) - kept * _bias(module)
    if site.b_bias_key is not None:
        offset = offset + site.scale * read(site.b_bias_key)
    if isinstance(offset, torch.Tensor):
        extra.offset = offset
    return extra


def _bias(module: torch.nn.Module) -> torch.Tensor | float:
    bias = getattr(module, "bias", None)
    return bias.detach().float().cpu() if isinstance(bias, torch.Tensor) else 0.0


def _as_linear(module: torch.nn.Module) -> torch.Tensor:
    """The weight as [out, in], float32, on the CPU."""
    weight = plain_weight(module).detach().float().cpu()
    return weight.t() if isinstance(module, Conv1D | torch.nn.Embedding) else weight


def _reader(directory: Path, files: Iterable[str]) -> Read:
    place: Mapping[str, Path] = {key: directory / name for name in files for key in _keys(directory / name)}

    def read(key: str) -> torch.Tensor:
        if key not in place:
            raise AdapterError(Reason.ARTIFACT_INVALID, f"tensor {key} is missing")
        try:
            with safe_open(place[key], framework="pt") as file:
                return file.get_tensor(key).float()
        except (SafetensorError, OSError) as error:
            raise AdapterError(Reason.ARTIFACT_INVALID, f"{place[key].name} cannot be read: {error}") from error

    return read


def _keys(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise AdapterError(Reason.ARTIFACT_INVALID, f"{path.name} cannot be read: {error}") from error
