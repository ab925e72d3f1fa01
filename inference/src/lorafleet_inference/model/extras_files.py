"""Reads what adapters hold beside rows of A and B, and brings it into the form of `extras.py`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch.nn import functional as F  # noqa: N812
from transformers.pytorch_utils import Conv1D

from lorafleet_inference.adapters.types import AdapterPlan, ExpertSite, LoraSite
from lorafleet_inference.kernels.packed import plain_weight
from lorafleet_inference.model.extras import Extra, Extras
from lorafleet_inference.model.finite import applied, check_finite
from lorafleet_inference.model.merge_tensors import Read
from lorafleet_inference.model.own_rows import read_rows
from lorafleet_inference.model.ranks.split import Shard
from lorafleet_inference.model.tensor_files import reader_of

Total = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over the ranks of a model."""


def alone(tensor: torch.Tensor) -> torch.Tensor:
    """Where there is one rank."""
    return tensor


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a site is, and what of its tensors this rank holds."""

    name: str
    module: torch.nn.Module
    shard: Shard | None
    total: Total

    def a(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.shard is None else self.shard.lora_a(self.name, tensor)

    def b(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.shard is None else self.shard.lora_b(self.name, tensor)

    def bias(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.shard is None else self.shard.bias(self.name, tensor)

    def factor(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.shard is None else self.shard.factor(self.name, tensor)

    def row_norms(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the norm of each whole row of a weight [out, in] of which this rank has columns, or all."""
        if self.shard is None or not self.shard.is_partial(self.name):
            return torch.linalg.vector_norm(weight, dim=1)
        return self.total(weight.square().sum(1)).sqrt()


def load_extras(
    plan: AdapterPlan, model: torch.nn.Module, dtype: torch.dtype, shard: Shard | None = None, total: Total = alone
) -> Extras:
    """Read the extras of a validated adapter that was settled (`own_rows.py`).

    `shard`: what of them this rank holds of a model on several; `total` sums over all, in the same order on each.

    Raises:
        AdapterError: ARTIFACT_INVALID when a value is not finite, or the files are not what validation saw.
    """
    sites = [site for site in plan.sites if site.magnitude_key is not None or site.b_bias_key is not None]
    if not (sites or plan.side_sites or plan.own or plan.own_rows or plan.experts):
        return {}
    read = reader_of(plan)
    extras, biases = _own(plan, model, read, shard)
    for site in (*sites, *plan.side_sites):
        module = model.get_submodule(site.module)
        extra = extras.setdefault(site.module, Extra())
        place = _Place(site.module, module, shard, total)
        _add_site(extra, site, place, read, biases.get(site.module), is_side=site in plan.side_sites)
    for name in biases.keys() - {site.module for site in (*sites, *plan.side_sites)}:
        extras.setdefault(name, Extra()).offset = _minus(biases[name], _bias(model.get_submodule(name)))
    for expert_site in plan.experts:
        extra = extras.setdefault(expert_site.module, Extra())
        a, b = _of_experts(expert_site, model.get_submodule(expert_site.module), read, shard)
        if expert_site.parameter == "down_proj":
            extra.down_a, extra.down_b = a, b
        else:
            extra.up_a, extra.up_b = a, b
    cast = {name: extra.map(lambda tensor: _cast(tensor, dtype)) for name, extra in extras.items()}
    _check_made(cast, plan, applied(1.0, dtype))
    return cast


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()


def _own(
    plan: AdapterPlan, model: torch.nn.Module, read: Read, shard: Shard | None
) -> tuple[dict[str, Extra], dict[str, torch.Tensor]]:
    """Return the adapter's own weights and rows, and beside them biases that come as offsets.

    A bias alone is an offset, so that it can stand beside LoRA on the same module.
    """
    own: dict[str, dict[str, torch.Tensor]] = {}
    for one in plan.own:
        tensor = read(one.key)
        own.setdefault(one.module, {})[one.parameter] = (
            tensor if shard is None else shard.parameter(one.module, one.parameter, tensor)
        )
    with_lora = {site.module for site in (*plan.sites, *plan.side_sites)}
    apart = {name for name, tensors in own.items() if "weight" not in tensors or name in with_lora}
    biases = {name: own[name].pop("bias") for name in apart if "bias" in own[name]}
    extras = {name: Extra(**tensors) for name, tensors in own.items() if tensors}
    for name in sorted({one.module for one in plan.own_rows}):
        module = model.get_submodule(name)
        found = read_rows(plan, name, _width(module))
        assert found is not None
        extra = extras.setdefault(name, Extra())
        if extra.weight is not None:
            extra.weight[found[0]] = found[1]
        else:
            extra.token_ids, extra.token_rows = found
    for name, extra in extras.items():
        module = model.get_submodule(name)
        bias = _bias(module)
        if extra.weight is not None and extra.bias is None and isinstance(bias, torch.Tensor):
            extra.bias = bias[: len(extra.weight)] if len(bias) > len(extra.weight) else None
            if len(bias) < len(extra.weight):
                extra.bias = F.pad(bias, (0, len(extra.weight) - len(bias)))
    return extras, biases


def _width(words: torch.nn.Module) -> int:
    """Elements of a row of an embedding or a head."""
    if isinstance(words, torch.nn.Embedding):
        return words.embedding_dim
    return words.in_features if isinstance(words, torch.nn.Linear) else plain_weight(words).shape[1]


def _minus(ours: torch.Tensor, base: torch.Tensor | float) -> torch.Tensor:
    """Return the difference of two biases; the base's has zeros beyond its end."""
    if isinstance(base, float):
        return ours - base
    return ours - (F.pad(base, (0, len(ours) - len(base))) if len(base) < len(ours) else base[: len(ours)])


def _check_made(extras: Extras, plan: AdapterPlan, how: str) -> None:
    keys: dict[str, list[str]] = {}
    for module, key, _ in _read_keys(plan):
        keys.setdefault(module, []).append(key)
    for name, extra in extras.items():
        for part in fields(extra):
            tensor = getattr(extra, part.name)
            if tensor is not None:
                check_finite(tensor, f"{part.name} of {name}, made of {', '.join(keys[name])},", how)


def check_extras(plan: AdapterPlan, dtype: torch.dtype) -> None:
    """Check what can be checked of an adapter's extras without the base's weights: all but DoRA's ratio to their norms.

    Raises:
        AdapterError: ARTIFACT_INVALID; names the tensor.
    """
    read = reader_of(plan)
    for _, key, scale in _read_keys(plan):
        check_finite((read(key) * scale).to(dtype), f"tensor {key}", applied(scale, dtype))


def _read_keys(plan: AdapterPlan) -> Iterator[tuple[str, str, float]]:
    """Yield (module, tensor, scale) of what `load_extras` reads; A and B of sites in rows are there for DoRA's norms."""
    side = set(plan.side_sites)
    for site in (*plan.sites, *plan.side_sites):
        if site in side or site.magnitude_key is not None:
            yield site.module, site.a_key, 1.0
            yield site.module, site.b_key, site.scale
        if site.magnitude_key is not None:
            yield site.module, site.magnitude_key, 1.0
        if site.b_bias_key is not None:
            yield site.module, site.b_bias_key, site.scale
    for own in plan.own:
        yield own.module, own.key, 1.0
    for rows in plan.own_rows:
        yield rows.module, rows.key, 1.0
    for expert_site in plan.experts:
        for one in expert_site.tensors:
            yield expert_site.module, one.a_key, 1.0
            yield expert_site.module, one.b_key, expert_site.scale


def _add_site(
    extra: Extra, site: LoraSite, place: _Place, read: Read, bias: torch.Tensor | None, *, is_side: bool
) -> None:
    """Add what a site needs beside rows; `bias`: the adapter's own.

    y = W x + b + s B A x is what LoRA gives. With DoRA, PEFT gives b + m (W x + s B A x), m = magnitude / norm of the rows
    of W + s B A.
    """
    module = place.module
    a, b = place.a(read(site.a_key)), place.b(read(site.b_key))
    if is_side:
        extra.a = a.t() if isinstance(module, torch.nn.Embedding) else a
        extra.b = b.t() * site.scale
    if site.magnitude_key is not None:
        norm = place.row_norms(_as_linear(module, extra, a, b) + site.scale * (b @ a))
        extra.scale = place.factor(read(site.magnitude_key).flatten()) / norm
    offset: torch.Tensor | float = 0.0
    if bias is not None or extra.scale is not None:
        kept = 1.0 if extra.scale is None else extra.scale
        base = _bias(module)
        if isinstance(base, torch.Tensor):
            num_out = len(b)  # an adapter may have another number of rows
            base = F.pad(base, (0, num_out - len(base))) if len(base) < num_out else base[:num_out]
        offset = (base if bias is None else bias) - kept * base
    if site.b_bias_key is not None:
        offset = offset + site.scale * place.bias(read(site.b_bias_key))
    if isinstance(offset, torch.Tensor):
        extra.offset = offset


def _of_experts(
    site: ExpertSite, module: torch.nn.Module, read: Read, shard: Shard | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A [E, r, in] and B [E, r, out] of `_of_whole_experts`, of them the rank's part."""
    shape = tuple(getattr(module, site.parameter).shape)
    if shard is None:
        return _of_whole_experts(site, shape, read)
    a, b = _of_whole_experts(site, shard.whole_shape(site.parameter, shape), read)
    return shard.lora_a(site.parameter, a), shard.lora_b(site.parameter, b, axis=-1)


def _of_whole_experts(site: ExpertSite, shape: tuple[int, ...], read: Read) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A [E, r, in] and B [E, r, out], times the scale.

    Of maps that were trained one by one, the halves of a fused weight each have rows of their own: A below A, and B in
    blocks on the diagonal.
    """
    num_experts, num_out, num_in = shape
    first = site.tensors[0]
    if first.expert is None:
        a = read(first.a_key).reshape(num_experts, site.rank, num_in)
        b = read(first.b_key).reshape(num_out, site.rank, num_experts).permute(2, 1, 0)
        return a, b * site.scale
    a, b = torch.zeros(num_experts, site.rank, num_in), torch.zeros(num_experts, site.rank, num_out)
    num_parts = 1 + max(one.part or 0 for one in site.tensors)
    rank, width = site.rank // num_parts, num_out // num_parts
    for one in site.tensors:
        part = one.part or 0
        rows, columns = slice(part * rank, (part + 1) * rank), slice(part * width, (part + 1) * width)
        a[one.expert, rows] = read(one.a_key)
        b[one.expert, rows, columns] = read(one.b_key).t() * site.scale
    return a, b


def _bias(module: torch.nn.Module) -> torch.Tensor | float:
    bias = getattr(module, "bias", None)
    return bias.detach().cpu().float() if isinstance(bias, torch.Tensor) else 0.0


def _as_linear(module: torch.nn.Module, extra: Extra, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The weight under A and B, the adapter's own where it has one, as [out, in], float32, on the CPU."""
    weight = plain_weight(module).detach().cpu().float() if extra.weight is None else extra.weight
    if isinstance(module, torch.nn.Embedding | torch.nn.Linear):
        num_rows = a.shape[1] if isinstance(module, torch.nn.Embedding) else b.shape[0]
        weight = F.pad(weight, (0, 0, 0, num_rows - len(weight)))  # cuts, where there are fewer
    if extra.token_ids is not None and extra.token_rows is not None:
        weight = weight.clone()
        weight[extra.token_ids] = extra.token_rows
    return weight.t() if isinstance(module, Conv1D | torch.nn.Embedding) else weight
