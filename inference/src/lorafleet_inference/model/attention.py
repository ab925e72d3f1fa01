"""Attention over paged KV, plugged into transformers' attention interface.

Axes: H query heads, G key-value heads, R = H / G, D head width of keys, E of values, T tokens of the batch, N tokens of KV,
B decoding sequences. transformers calls `attend` once a layer with rotated, unrepeated keys; what it wrote to the pages in
earlier steps is read back from there. The metadata of a step stands in a context, because some families drop keyword
arguments on their way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch.nn import functional as F  # noqa: N812
from transformers import AttentionInterface

from lorafleet_inference.kernels import fp8_pages
from lorafleet_inference.kernels.layer_ops import HeadSpec, LayerOps
from lorafleet_inference.model.paged_step import LayerKV, PagedStep, Prefill

NAME = "lorafleet_paged"


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
        if one.is_fresh and not pages.are_rounded:
            keys, values = key[:, :, one.begin : one.end], value[:, :, one.begin : one.end]
        else:
            keys, values = (_known(one, some, key.dtype)[None] for some in (pages.keys, pages.values))
        queries = query[:, :, one.begin : one.end]
        if one.is_fresh and extras.are_none and (window is None or window >= one.num_known):
            done = _attend_causal(queries, keys, values, extras.scale)
        else:
            done = _attend(queries, keys, values, one.mask(window), extras)
        out[:, one.begin : one.end] = done.transpose(1, 2)
    for many in step.decodes:
        keys, values = (many.known(some, window, key.dtype) for some in (pages.keys, pages.values))
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


def _known(one: Prefill, pages: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[G, N, D] of the pages of one sequence."""
    return fp8_pages.gather(pages, one.blocks, dtype).transpose(0, 1).flatten(1, 2)[:, : one.num_known]


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
