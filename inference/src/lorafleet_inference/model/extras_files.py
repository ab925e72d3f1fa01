"""Reads what adapters hold beside rows of A and B to their pages of the host, in the form that `extras.py` computes with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch.nn import functional as F  # noqa: N812
from transformers.pytorch_utils import Conv1D

from lorafleet_inference.adapters.types import AdapterPlan, ExpertSite, LoraSite
from lorafleet_inference.kernels.packed import plain_weight
from lorafleet_inference.model.base_rows import BaseRows, in_pieces
from lorafleet_inference.model.finite import applied, check_finite
from lorafleet_inference.model.host_adapter import HostExtras
from lorafleet_inference.model.merge_tensors import Read
from lorafleet_inference.model.own_rows import read_rows
from lorafleet_inference.model.ranks.split import Shard
from lorafleet_inference.model.readers import each_by, num_readers
from lorafleet_inference.model.tensor_files import pieces_of, reader_of

Total = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over the ranks of a model."""


def alone(tensor: torch.Tensor) -> torch.Tensor:
    """Where there is one rank."""
    return tensor


@dataclass(slots=True)
class Extra:
    """What an adapter changes in one module beside rows of A and B and a weight of its own, while it is read."""

    a: torch.Tensor | None = None
    """[r, in] of the head; [vocabulary, r] of the embedding."""
    b: torch.Tensor | None = None
    """[r, out], times the site's scale."""
    scale: torch.Tensor | None = None
    """[out]"""
    offset: torch.Tensor | None = None
    """[out]"""
    token_ids: torch.Tensor | None = None
    """[k] int64, growing: tokens of which embedding or head has a row of its own."""
    token_rows: torch.Tensor | None = None
    """[k, hidden]"""
    bias: torch.Tensor | None = None
    """Beside a weight of its own."""
    up_a: torch.Tensor | None = None
    """Of fused experts, as in `ExpertLora`."""
    up_b: torch.Tensor | None = None
    down_a: torch.Tensor | None = None
    down_b: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a site is, and what of its tensors this rank holds."""

    name: str
    module: torch.nn.Module
    shard: Shard | None
    total: Total
    base: BaseRows

    def a(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.shard is None else self.shard.lora_a(self.name, tensor)

    def b(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.shard is None else self.shard.lora_b(self.name, tensor)

    def bias(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.shard is None else self.shard.bias(self.name, tensor)

    def factor(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.shard is None else self.shard.factor(self.name, tensor)

    def norms(self, squares: torch.Tensor) -> torch.Tensor:
        """Return the norm [out] of each whole row of a weight, of which this rank's columns, or all, have these sums of squares."""
        if self.shard is not None and self.shard.is_partial(self.name):
            squares = self.total(squares)
        return squares.sqrt()


def load_extras(
    plan: AdapterPlan,
    model: torch.nn.Module,
    base: BaseRows,
    host: HostExtras,
    *,
    shard: Shard | None = None,
    total: Total = alone,
    max_readers: int = 1,
) -> None:
    """Read the extras of a validated adapter that was settled (`own_rows.py`) to its pages of the host.

    `base`: reads the model's weights. `shard`: what of the extras this rank holds of a model on several; `total` sums over all,
    in the same order on each. `max_readers`: threads that read at the same time.

    Raises:
        AdapterError: ARTIFACT_INVALID when a value is not finite, or the files are not what validation saw.
    """
    sites = [site for site in plan.sites if site.magnitude_key is not None or site.b_bias_key is not None]
    if not (sites or plan.side_sites or plan.own or plan.own_rows or plan.experts):
        return
    reader = _Reader(plan, model, base, host, shard=shard, total=total)
    num_threads = 1  # sums over ranks have an order, and a merge makes A and B of a module at once
    if shard is None and plan.merged is None:
        measured = any(one.magnitude_key is not None for one in (*sites, *plan.side_sites))
        num_threads = max_readers if measured else num_readers(plan.facts.size_bytes, max_readers)
    each_by(num_threads, reader.load, reader.modules)


class _Reader:
    """Reads what an adapter has at one module after the other."""

    def __init__(
        self,
        plan: AdapterPlan,
        model: torch.nn.Module,
        base: BaseRows,
        host: HostExtras,
        *,
        shard: Shard | None,
        total: Total,
    ) -> None:
        self._plan, self._model, self._base, self._host, self._shard, self._total = (
            plan,
            model,
            base,
            host,
            shard,
            total,
        )
        self._read = reader_of(plan)
        self._own: dict[str, dict[str, str]] = {}
        """Keys of own parameters, by module and name."""
        for one in plan.own:
            self._own.setdefault(one.module, {})[one.parameter] = one.key
        self._sites = {site.module: (site, False) for site in plan.sites if site.magnitude_key or site.b_bias_key}
        self._sites |= {site.module: (site, True) for site in plan.side_sites}
        self._with_lora = {site.module for site in (*plan.sites, *plan.side_sites)}
        self._experts: dict[str, list[ExpertSite]] = {}
        for stack in plan.experts:
            self._experts.setdefault(stack.module, []).append(stack)
        rows = dict.fromkeys(one.module for one in plan.own_rows)
        self.modules = list(dict.fromkeys((*self._own, *rows, *self._sites, *self._experts)))
        self._keys: dict[str, list[str]] = {}
        for module, key, _ in _read_keys(plan):
            self._keys.setdefault(module, []).append(key)

    def load(self, name: str) -> None:
        """Read all of a module."""
        module = self._model.get_submodule(name)
        own, extra = dict(self._own.get(name, {})), Extra()
        rows = (
            read_rows(self._plan, name, _width(module))
            if any(one.module == name for one in self._plan.own_rows)
            else None
        )
        weight: _Pieces | None = None
        if "weight" in own:
            weight = partial(self._own_weight, name, own["weight"], rows)
        elif rows is not None:
            extra.token_ids, extra.token_rows = rows
        bias = None
        if "bias" in own:
            bias = self._parameter(name, "bias", own["bias"])
            if weight is not None and name not in self._with_lora:
                extra.bias, bias = bias, None
        if weight is not None:
            num_rows = self._write_weight(name, weight)
            self._fit_bias(extra, module, num_rows)
        if name in self._sites:
            site, is_side = self._sites[name]
            place = _Place(name, module, self._shard, self._total, self._base)
            _add_site(extra, site, place, self._read, bias=bias, weight=weight, is_side=is_side)
        elif bias is not None:
            extra.offset = _minus(bias, self._base.bias(module))
        for stack in self._experts.get(name, ()):
            a, b = _of_experts(stack, module, self._read, self._shard)
            if stack.parameter == "down_proj":
                extra.down_a, extra.down_b = a, b
            else:
                extra.up_a, extra.up_b = a, b
        for part in fields(extra):
            tensor = getattr(extra, part.name)
            if tensor is not None:
                made = tensor.to(self._host.dtype) if tensor.is_floating_point() else tensor
                self._check_made(name, part.name, made)
                self._host.write(name, part.name, made)

    def _parameter(self, name: str, parameter: str, key: str) -> torch.Tensor:
        tensor = self._read(key)
        return tensor if self._shard is None else self._shard.parameter(name, parameter, tensor)

    def _own_weight(self, name: str, key: str, rows: "_Rows | None") -> Iterator[tuple[int, torch.Tensor]]:
        is_whole = self._plan.merged is None and self._shard is None
        return _replaced(
            pieces_of(self._plan, key) if is_whole else in_pieces(self._parameter(name, "weight", key)), rows
        )

    def _write_weight(self, name: str, weight: "_Pieces") -> int:
        """Write an own weight, and return how many rows it has."""
        num_rows, shape = 0, torch.Size()
        for begin, rows in weight():
            made = rows.to(self._host.dtype)
            self._check_made(name, "weight", made, begin)
            self._host.write_from(name, "weight", begin * made[0].numel(), made)
            num_rows, shape = begin + len(rows), made.shape[1:]
        self._host.note(name, "weight", (num_rows, *shape))
        return num_rows

    def _fit_bias(self, extra: "Extra", module: torch.nn.Module, num_rows: int) -> None:
        """Have the base's bias beside an own weight with another number of rows."""
        bias = self._base.bias(module)
        if extra.bias is None and isinstance(bias, torch.Tensor):
            extra.bias = bias[:num_rows] if len(bias) > num_rows else None
            if len(bias) < num_rows:
                extra.bias = F.pad(bias, (0, num_rows - len(bias)))

    def _check_made(self, name: str, part: str, made: torch.Tensor, first: int = 0) -> None:
        what = f"{part} of {name}, made of {', '.join(self._keys[name])},"
        check_finite(made, what, applied(1.0, self._host.dtype), first)


_Pieces = Callable[[], Iterator[tuple[int, torch.Tensor]]]
"""Reads the first row and rows of pieces of an adapter's own weight, float32."""
_Rows = tuple[torch.Tensor, torch.Tensor]
"""Ids [k] int64, growing, and rows [k, ..] float32."""


def _replaced(pieces: Iterator[tuple[int, torch.Tensor]], rows: "_Rows | None") -> Iterator[tuple[int, torch.Tensor]]:
    """Yield pieces with some rows in the place of their own. Changes them."""
    for begin, some in pieces:
        if rows is not None:
            ids, own = rows
            first, last = torch.searchsorted(ids, torch.tensor([begin, begin + len(some)])).tolist()
            some[ids[first:last] - begin] = own[first:last]
        yield begin, some


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
    extra: Extra,
    site: LoraSite,
    place: _Place,
    read: Read,
    *,
    bias: torch.Tensor | None,
    weight: "_Pieces | None",
    is_side: bool,
) -> None:
    """Add what a site needs beside rows; `bias` and `weight`: the adapter's own.

    y = W x + b + s B A x is what LoRA gives. With DoRA, PEFT gives b + m (W x + s B A x), m = magnitude / norm of the rows
    of W + s B A.
    """
    module = place.module
    a, b = place.a(read(site.a_key)), place.b(read(site.b_key))
    if is_side:
        extra.a = a.t() if isinstance(module, torch.nn.Embedding) else a
        extra.b = b.t() * site.scale
    if site.magnitude_key is not None:
        is_embedding, is_by_inputs = isinstance(module, torch.nn.Embedding), isinstance(module, Conv1D)
        num_rows = None if is_by_inputs else a.shape[1] if is_embedding else len(b)
        rows = _rows_under(place, extra, weight, num_rows)
        squares = _squares(rows, a, b, site.scale, is_stored_by_inputs=is_embedding or is_by_inputs)
        extra.scale = place.factor(read(site.magnitude_key).flatten()) / place.norms(squares)
    offset: torch.Tensor | float = 0.0
    if bias is not None or extra.scale is not None:
        kept = 1.0 if extra.scale is None else extra.scale
        own = place.base.bias(module)
        if isinstance(own, torch.Tensor):
            num_out = len(b)  # an adapter may have another number of rows
            own = F.pad(own, (0, num_out - len(own))) if len(own) < num_out else own[:num_out]
        offset = (own if bias is None else bias) - kept * own
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


def _squares(
    rows: Iterator[tuple[int, torch.Tensor]],
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    *,
    is_stored_by_inputs: bool,
) -> torch.Tensor:
    """Return [out] float32: of each row of W + scale B A the sum of its squares. Changes the rows of W that it gets.

    `is_stored_by_inputs`: the rows are columns of W.
    """
    if is_stored_by_inputs:
        total = torch.zeros(len(b), dtype=torch.float64)
        for begin, some in rows:
            total += some.addmm_(a[:, begin : begin + len(some)].t(), b.t(), alpha=scale).square_().sum(0)
        return total.float()
    squares = torch.empty(len(b))
    for begin, some in rows:
        end = begin + len(some)
        squares[begin:end] = some.addmm_(b[begin:end], a, alpha=scale).square_().sum(1)
    return squares


def _rows_under(
    place: _Place, extra: Extra, weight: "_Pieces | None", num_rows: int | None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the first row, and rows in float32, which may be changed, of the weight under A and B: the adapter's own where it has one.

    `num_rows`: of the adapter, where that may be another number than the base's.
    """
    if weight is not None:
        yield from _of_length(weight(), num_rows)
        return
    pieces = ((begin, rows.to(torch.float32, copy=True)) for begin, rows in place.base.pieces(place.module))
    rows = None if extra.token_ids is None or extra.token_rows is None else (extra.token_ids, extra.token_rows)
    yield from _replaced(_of_length(pieces, num_rows), rows)


def _of_length(pieces: Iterator[tuple[int, torch.Tensor]], num_rows: int | None) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield pieces of as many rows, where a number is given: of some too many are left out, of too few the rest is zeros."""
    end = width = 0
    for begin, rows in pieces:
        some = rows if num_rows is None else rows[: max(0, num_rows - begin)]
        if len(some):
            yield begin, some
        end, width = begin + len(rows), rows.shape[1]
    if num_rows is not None and end < num_rows:
        lacking = torch.zeros(1, 1).expand(num_rows - end, width)
        yield from ((end + begin, rows.clone()) for begin, rows in in_pieces(lacking))
