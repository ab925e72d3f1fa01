"""The layers of the decoder.

Their modules have the names that transformers gives them, as adapters and hooks go by names. Each layer is a class of its own here,
made from the module that transformers loaded, whose weights it takes over.
Axes: T tokens of the step, H query heads, G key-value heads, D head width.
"""

from dataclasses import replace
from typing import Any

import torch

from lorafleet_inference.kernels.layer_ops import HeadSpec, LayerOps, TorchLayerOps
from lorafleet_inference.model.attention import attend_packed
from lorafleet_inference.model.decoder.linear import Linear, Total
from lorafleet_inference.model.decoder.quantized import product_of
from lorafleet_inference.model.decoder.spec import Spec, activation_of, width_of_head

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines [T, rotated elements of a head] each."""


class Fused(torch.nn.Module):
    """A module that computes with operations of a backend."""

    ops: LayerOps = TorchLayerOps()


class Norm(Fused):
    """RMS norm [.., width], alone or with what comes to the residual before it."""

    def __init__(self, source: Any, spec: Spec) -> None:
        super().__init__()
        self.weight = source.weight
        self.unit_offset = spec.has_unit_offset
        eps = getattr(source, "variance_epsilon", None)
        self.eps = float(source.eps if eps is None else eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [.., width]"""
        rows = x.reshape(-1, x.shape[-1])
        return self.ops.norm(rows, self.weight, self.eps, unit_offset=self.unit_offset).view(x.shape)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Add x [T, width] to the residual [T, width], in place, and return the norm of that."""
        if self._forward_hooks:  # an adapter's own norm: its hook has to see what goes in
            residual += x
            out: torch.Tensor = self(residual)
            return out
        return self.ops.norm(x, self.weight, self.eps, residual=residual, unit_offset=self.unit_offset)


class Attention(Fused):
    """Queries, keys and values in one product, and what they are for."""

    def __init__(self, source: Any, config: Any, spec: Spec, layer: int) -> None:
        super().__init__()
        self._layer = layer
        self._qkv = taken(source, self, spec.qkv, "qkv")
        self._out = taken(source, self, ("o_proj",), "out")
        self._heads = HeadSpec(config.num_attention_heads, config.num_key_value_heads, width_of_head(config))
        self._norms: tuple[Norm, ...] = ()
        self._plain_heads = self._heads
        """Without norms, for adapters that have norms of their own."""
        if spec.has_head_norms:
            self.q_norm, self.k_norm = Norm(source.q_norm, spec), Norm(source.k_norm, spec)
            self._norms = (self.q_norm, self.k_norm)
            self._heads = replace(
                self._heads,
                q_norm=self.q_norm.weight,
                k_norm=self.k_norm.weight,
                eps=self.q_norm.eps,
                unit_offset=spec.has_unit_offset,
            )
        self._scaling, self._window = spec.scaling(config), spec.window(config, layer)
        self._softcap: float | None = config.attn_logit_softcapping if spec.has_score_cap else None

    def forward(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """x [T, hidden]; returns likewise."""
        qkv = self._qkv[0].product(x)
        heads = self._heads
        if any(norm._forward_hooks for norm in self._norms):  # noqa: SLF001  as in `Norm.add`
            heads = self._plain_heads
            qkv = self._normed(qkv)
        seen = attend_packed(
            self._layer,
            qkv,
            heads,
            *rotation,
            ops=self.ops,
            scaling=self._scaling,
            sliding_window=self._window,
            softcap=self._softcap,
        )
        return self._out[0].product(seen)

    def sum_over(self, total: Total) -> None:
        """As `Decoder.sum_over`."""
        self._out[0].total = total

    def _normed(self, qkv: torch.Tensor) -> torch.Tensor:
        """Return qkv with the norms of heads, as modules whose hooks see [1, T, heads, D]."""
        heads = self._plain_heads
        rows = qkv.view(1, len(qkv), heads.num_rows, heads.width)
        query, key, value = rows.split((heads.num_heads, heads.num_kv_heads, heads.num_kv_heads), 2)
        return torch.cat((self.q_norm(query), self.k_norm(key), value), 2).view(qkv.shape)


class Mlp(Fused):
    """Gate and up in one product, then down."""

    def __init__(self, source: Any, config: Any, spec: Spec) -> None:
        super().__init__()
        self._gate_up = taken(source, self, spec.gate_up, "gate_up")
        self._down = taken(source, self, ("down_proj",), "down")
        activation = activation_of(config, spec)
        assert activation is not None, "`why_not` has said so"
        self._activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, hidden]; returns likewise."""
        return self._down[0].product(self.ops.gate(self._gate_up[0].product(x), self._activation))

    def sum_over(self, total: Total) -> None:
        """As `Decoder.sum_over`."""
        self._down[0].total = total


class Layer(torch.nn.Module):
    """Attention and gated layers around one residual."""

    def __init__(self, source: Any, config: Any, spec: Spec, layer: int) -> None:
        super().__init__()
        self.input_layernorm = Norm(source.input_layernorm, spec)
        self.self_attn = Attention(source.self_attn, config, spec, layer)
        self.post_attention_layernorm = Norm(source.post_attention_layernorm, spec)
        self._has_post_norms = spec.has_post_norms
        if spec.has_post_norms:
            self.pre_feedforward_layernorm = Norm(source.pre_feedforward_layernorm, spec)
            self.post_feedforward_layernorm = Norm(source.post_feedforward_layernorm, spec)
        self._has_experts = hasattr(source.mlp, "experts")
        self.total: Total | None = None
        """Sums what the ranks of a model give, where each has a part of each expert."""
        self.mlp = source.mlp if self._has_experts else Mlp(source.mlp, config, spec)

    def sum_over(self, total: Total) -> None:
        """As `Decoder.sum_over`."""
        self.self_attn.sum_over(total)
        if isinstance(self.mlp, Mlp):
            self.mlp.sum_over(total)
        else:
            self.total = total

    def forward(self, x: torch.Tensor | None, residual: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """x [T, hidden] is still to be added to the residual [T, hidden], which changes in place; returns what comes after it."""
        normed = self.input_layernorm(residual) if x is None else self.input_layernorm.add(x, residual)
        attended = self.self_attn(normed, rotation)
        if self._has_post_norms:
            normed = self.pre_feedforward_layernorm.add(self.post_attention_layernorm(attended), residual)
        else:
            normed = self.post_attention_layernorm.add(attended, residual)
        out: torch.Tensor = self.mlp(normed[None])[0] if self._has_experts else self.mlp(normed)
        if self.total is not None:
            out = self.total(out)
        return self.post_feedforward_layernorm(out) if self._has_post_norms else out


def taken(source: torch.nn.Module, owner: torch.nn.Module, names: tuple[str, ...], whole: str) -> tuple[Linear]:
    """Return the product of some modules of `source` by their names, which stand in `owner` from now on. A tuple: it is no child twice."""
    linear = product_of([getattr(source, name) for name in names])
    if len(names) == 1:
        owner.add_module(names[0], linear)
    else:
        owner.add_module(whole, linear)
        for name, part in zip(names, linear.parts, strict=True):
            owner.add_module(name, part)
    return (linear,)
