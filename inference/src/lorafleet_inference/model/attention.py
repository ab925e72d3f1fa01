"""Attention over paged KV, plugged into transformers' attention interface.

Axes: H query heads, G key-value heads, R = H / G, D head width of keys, E of values, T tokens of the batch, N tokens of KV,
B decoding sequences. transformers calls `attend` once a layer with rotated, unrepeated keys; what it wrote to the pages in
earlier steps is read back from there. The metadata of a step stands in a context, because some families drop keyword
arguments on their way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import AttentionInterface

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.kernels.cpu import CpuKernels, PagedDecode
from lorafleet_inference.kernels.layer_ops import HeadSpec, LayerOps
from lorafleet_inference.model.batch import FlatBatch, Span

if TYPE_CHECKING:  # Triton is there on Linux alone
    from lorafleet_inference.kernels.triton.paged import AttentionStep

NAME = "lorafleet_paged"
DECODE_GROUP = 64
"""At most so many decoding sequences are gathered together; sorted by length, so that little is padded."""


@dataclass(slots=True)
class LayerKV:
    """Pages of one layer."""

    keys: torch.Tensor
    """[num_blocks, G, KV_BLOCK_TOKENS, D], in the model's dtype, on the device."""
    values: torch.Tensor
    """[num_blocks, G, KV_BLOCK_TOKENS, E], likewise."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What a probe saw of a layer's attention."""

    num_kv_heads: int
    key_width: int
    value_width: int
    sliding_window: int | None
    causal: bool


@dataclass(slots=True)
class Probe:
    """Instead of attending, write down what each layer asks for; answers zeros."""

    calls: list[tuple[int, LayerShape]] = field(default_factory=list)
    """(layer index, shape), in the order of the calls."""


class PagedStep:
    """One step's way through the pages. `kernels`: of the CPU, where there are any; `launched`: what those of a GPU compute."""

    def __init__(
        self,
        layers: list[LayerKV],
        batch: FlatBatch,
        kernels: CpuKernels | None = None,
        launched: "AttentionStep | None" = None,
    ) -> None:
        self.layers = layers
        self._batch: FlatBatch | None = batch
        self._kernels = kernels if kernels is not None and kernels.can_decode(layers[0].keys.dtype) else None
        decodes = np.flatnonzero(batch.host.counts == 1)
        self._decodes = decodes[np.argsort(batch.host.starts[decodes], kind="stable")]
        """Sequences with one token in the step, the shortest first."""
        self.launched = launched
        """Instead of all that follows, in layers that the Triton kernels can compute."""

    @classmethod
    def of_kernels(cls, layers: list[LayerKV], launched: "AttentionStep") -> "PagedStep":
        """Return a step that the Triton kernels compute in all layers."""
        step = cls.__new__(cls)
        step.layers, step.launched, step._batch = layers, launched, None  # noqa: SLF001
        return step

    def write(self, source: torch.Tensor, pages: torch.Tensor) -> None:
        """Write source [G, T, width] of all tokens of the step to the pages of a layer."""
        kernels, batch = self._kernels, self._batch
        if kernels is not None and batch is not None and kernels.write_pages(source, pages, batch.slots):
            return
        blocks, offsets = self.places
        pages[blocks, :, offsets] = source.transpose(0, 1)

    @cached_property
    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Block of each token, and its offset in the block; both [T] int64, on the device."""
        if self._batch is None:
            raise RuntimeError("a layer has an attention that is left to torch")
        return self._batch.slots // KV_BLOCK_TOKENS, self._batch.slots % KV_BLOCK_TOKENS

    @cached_property
    def prefills(self) -> "list[_Prefill]":
        """Sequences with several tokens in the step."""
        assert self._batch is not None, "`places` has said so"
        device = self._batch.slots.device
        return [
            _Prefill(self._batch.host.span(index), device)
            for index in np.flatnonzero(self._batch.host.counts > 1).tolist()
        ]

    @cached_property
    def decodes(self) -> "list[_Decode]":
        """Sequences with one token in the step, where there are no kernels of the CPU."""
        groups = range(0, len(self._decodes) if self._kernels is None else 0, DECODE_GROUP)
        assert self._batch is not None, "`places` has said so"
        return [_Decode(self._batch, self._decodes[at : at + DECODE_GROUP]) for at in groups]

    @cached_property
    def compiled(self) -> PagedDecode | None:
        """Instead of `decodes`, where the kernels of the CPU can read the pages."""
        if self._batch is None or self._kernels is None or not len(self._decodes):
            return None
        spans = [self._batch.host.span(index) for index in self._decodes.tolist()]
        rows, starts, blocks = ([getattr(span, name) for span in spans] for name in ("begin", "start", "blocks"))
        return PagedDecode(self._kernels, rows, starts, blocks)


class _Prefill:
    """Several tokens of one sequence."""

    def __init__(self, span: Span, device: torch.device) -> None:
        self.begin, self.end, self.num_known = span.begin, span.end, span.num_known
        self.is_fresh = span.start == 0
        """Whether all that it sees is computed in this step."""
        self.blocks = torch.from_numpy(span.blocks.astype(np.int64)).to(device)
        self._queries = torch.arange(span.start, span.num_known, device=device)[:, None]
        self._keys = torch.arange(span.num_known, device=device)[None, :]
        self._masks: dict[int | None, torch.Tensor] = {}

    def mask(self, window: int | None) -> torch.Tensor:
        """[tokens, N] bool: which keys each token sees."""
        if window not in self._masks:
            seen = self._keys <= self._queries
            self._masks[window] = seen if window is None else seen & (self._keys > self._queries - window)
        return self._masks[window]


class _Decode:
    """One token each of several sequences."""

    def __init__(self, batch: FlatBatch, index: npt.NDArray[np.int64]) -> None:
        device = batch.slots.device
        longest = int(batch.host.starts[index].max()) // KV_BLOCK_TOKENS + 1
        # unused places of the table name block 0, of which nothing is used, as of the slots after the last token
        self.rows = torch.from_numpy(batch.host.begins[index]).to(device)
        self.blocks = torch.from_numpy(batch.host.tables[index, :longest].astype(np.int64)).to(device)
        self._last = torch.from_numpy(batch.host.starts[index, None]).to(device)
        self._keys = torch.arange(longest * KV_BLOCK_TOKENS, device=device)[None, :]
        self._masks: dict[int | None, torch.Tensor] = {}

    def mask(self, window: int | None) -> torch.Tensor:
        """[B, 1, 1, N] bool: which keys each token sees."""
        if window not in self._masks:
            seen = self._keys <= self._last
            mask = seen if window is None else seen & (self._keys > self._last - window)
            self._masks[window] = mask[:, None, None, :]
        return self._masks[window]

    def known(self, pages: torch.Tensor, window: int | None) -> torch.Tensor:
        """Gather pages: [B, G, N, width], with zeros where the token does not see.

        What lies there is nobody's, or another sequence's: a weight of 0 times NaN would be NaN.
        """
        gathered = pages[self.blocks].transpose(1, 2).flatten(2, 3)
        return gathered.masked_fill_(~self.mask(window).transpose(2, 3), 0.0)


_current: list[PagedStep | Probe] = []


@contextmanager
def attending(step: PagedStep | Probe) -> Iterator[None]:
    """While this is open, `attend` works for this step."""
    assert not _current, "one step at a time"
    _current.append(step)
    try:
        yield
    finally:
        _current.clear()


def register() -> None:
    """Make the name known to transformers; more than once does no harm."""
    AttentionInterface.register(NAME, attend)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,  # noqa: ARG001  made from positions here
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    key_bias: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Write keys and values to their pages and attend over all known ones of each token's sequence.

    query [1, H, T, D], key [1, G, T, D], value [1, G, T, E]; returns [1, T, H, E]. `key_bias` [H, positions] is added to
    the scaled scores of the key at each position (alibi).
    """
    causal = bool(getattr(module, "is_causal", True))
    out = _attend_layer(
        cast("int", module.layer_idx),
        query,
        key,
        value,
        window=sliding_window,
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        softcap=softcap,
        sinks=s_aux,
        key_bias=key_bias,
        causal=causal,
    )
    return out, None


def _attend_layer(
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    window: int | None,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None = None,
    key_bias: torch.Tensor | None = None,
    causal: bool = True,
) -> torch.Tensor:
    step = _current[0]
    heads, tokens = query.shape[1:3]
    if isinstance(step, Probe):
        step.calls.append((layer, LayerShape(key.shape[1], key.shape[-1], value.shape[-1], window, causal)))
        return query.new_zeros(1, tokens, heads, value.shape[-1])
    extras = _Extras(scale, softcap, sinks, key_bias)
    pages = step.layers[layer]
    if step.launched is not None and step.launched.can_attend(query[0], pages.values):
        out = query.new_empty(1, tokens, heads, value.shape[-1])
        step.launched.write(key[0], value[0], pages.keys, pages.values)
        step.launched.attend(
            query[0],
            pages.keys,
            pages.values,
            out[0],
            scale=scale,
            window=window,
            softcap=softcap,
            sinks=sinks,
            key_bias=key_bias,
        )
        return out
    return _attend_pages(step, pages, query, key, value, window=window, extras=extras)


def _attend_pages(
    step: PagedStep,
    pages: LayerKV,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    window: int | None,
    extras: "_Extras",
) -> torch.Tensor:
    """As `attend`, where no Triton kernel computes the layer: by torch, decode by the kernels of the CPU where they can."""
    heads, tokens = query.shape[1:3]
    out = query.new_zeros(1, tokens, heads, value.shape[-1])
    for source, some in ((key[0], pages.keys), (value[0], pages.values)):
        step.write(source, some)
    for one in step.prefills:
        if one.is_fresh:
            keys, values = key[:, :, one.begin : one.end], value[:, :, one.begin : one.end]
        else:
            keys, values = (_known(one, some)[None] for some in (pages.keys, pages.values))
        queries = query[:, :, one.begin : one.end]
        if one.is_fresh and extras.are_none and (window is None or window >= one.num_known):
            done = _attend_causal(queries, keys, values, extras.scale)
        else:
            done = _attend(queries, keys, values, one.mask(window), extras)
        out[:, one.begin : one.end] = done.transpose(1, 2)
    for many in step.decodes:
        keys, values = (many.known(some, window) for some in (pages.keys, pages.values))
        queries = query[0, :, many.rows].transpose(0, 1)[:, :, None]
        out[0, many.rows] = _attend(queries, keys, values, many.mask(window), extras)[:, :, 0]
    if step.compiled is not None:
        step.compiled.attend(
            query[0],
            pages.keys,
            pages.values,
            out[0],
            scale=extras.scale,
            window=window,
            softcap=extras.softcap,
            sinks=extras.sinks,
            key_bias=extras.key_bias,
        )
    return out


def _known(one: _Prefill, pages: torch.Tensor) -> torch.Tensor:
    """[G, N, D] of the pages of one sequence."""
    return pages[one.blocks].transpose(0, 1).flatten(1, 2)[:, : one.num_known]


@dataclass(frozen=True, slots=True)
class _Extras:
    scale: float
    softcap: float | None
    sinks: torch.Tensor | None
    """[H]"""
    key_bias: torch.Tensor | None
    """[H, positions]"""

    @property
    def are_none(self) -> bool:
        """Whether there is nothing but a scale."""
        return self.softcap is None and self.sinks is None and self.key_bias is None


def _attend_causal(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """As `_attend`, where each token sees those before it and itself: without a mask, half of the work is left out."""
    return F.scaled_dot_product_attention(query, keys, values, is_causal=True, scale=scale, enable_gqa=True)


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, extras: _Extras
) -> torch.Tensor:
    """query [B, H, T, D], keys [B, G, N, D], values [B, G, N, E], mask broadcasts to [B, 1, T, N]; returns [B, H, T, E].

    Query heads that share a key head become more rows of it, so that keys are never repeated.
    """
    batch, heads, tokens, width = query.shape
    groups = keys.shape[1]
    repeats = heads // groups
    rows = query.reshape(batch, groups, repeats * tokens, width)
    if tokens > 1 and repeats > 1:
        mask = mask.repeat(repeats, 1)
    bias = None
    if extras.key_bias is not None:
        some = extras.key_bias[:, None, : keys.shape[2]].to(query.dtype).expand(-1, tokens, -1)
        bias = some.reshape(1, groups, repeats * tokens, -1)
    if extras.softcap is None and extras.sinks is None:
        seen = mask if bias is None else bias.masked_fill(~mask, float("-inf"))
        done = F.scaled_dot_product_attention(rows, keys, values, attn_mask=seen, scale=extras.scale)
        return done.reshape(batch, heads, tokens, -1)
    scores = rows @ keys.transpose(-1, -2) * extras.scale
    if extras.softcap is not None:
        scores = torch.tanh(scores / extras.softcap) * extras.softcap
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if extras.sinks is None:
        weights = scores.float().softmax(-1)
    else:
        sinks = extras.sinks.view(1, groups, repeats, 1, 1).expand(batch, -1, -1, tokens, 1)
        with_sink = torch.cat([scores.float(), sinks.reshape(batch, groups, -1, 1).float()], dim=-1)
        weights = with_sink.softmax(-1)[..., :-1]
    return (weights.to(values.dtype) @ values).reshape(batch, heads, tokens, -1)


def attend_packed(
    layer_idx: int,
    qkv: torch.Tensor,
    heads: HeadSpec,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    ops: LayerOps,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """As `attend`, for queries, keys and values as one product gives them: rotated here, and returned [T, H D], contiguous.

    qkv [T, (H + 2 G) D]: of each token its query heads, key heads, value heads. cos and sin [T, R]: as `LayerOps.rotate` says.
    """
    step = _current[0]
    if not isinstance(step, Probe) and step.launched is not None:
        launched = step.launched
        pages = step.layers[layer_idx]
        unturned = qkv.view(len(qkv), heads.num_rows, heads.width)[:, : heads.num_heads].transpose(0, 1)
        if launched.can_attend(unturned, pages.values):
            turned = launched.rotate_write(qkv, heads, cos, sin, pages.keys, pages.values).transpose(0, 1)
            out = qkv.new_empty(len(qkv), heads.num_heads, heads.width)
            launched.attend(
                turned, pages.keys, pages.values, out, scale=scaling, window=sliding_window, softcap=softcap
            )
            return out.view(len(qkv), -1)
    rows = ops.rotate(qkv, heads, cos, sin).view(1, len(qkv), heads.num_rows, heads.width).transpose(1, 2)
    query, key, value = rows.split((heads.num_heads, heads.num_kv_heads, heads.num_kv_heads), 1)
    out = _attend_layer(layer_idx, query, key, value, window=sliding_window, scale=scaling, softcap=softcap)
    return out.view(len(qkv), -1)
