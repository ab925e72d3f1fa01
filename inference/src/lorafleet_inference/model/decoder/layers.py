"""The layers of the decoder.

Their modules have the names that transformers gives them, as adapters and hooks go by names. Each layer is a class of its own here,
made from the module that transformers loaded, whose weights it takes over.
Axes: T tokens of the step, H query heads, G key-value heads, D head width.
"""

from typing import Any

import torch

from lorafleet_inference.kernels.layer_ops import HeadSpec, LayerOps, TorchLayerOps
from lorafleet_inference.model.attention import attend_packed
from lorafleet_inference.model.decoder.linear import Linear
from lorafleet_inference.model.decoder.spec import Spec, activation_of, width_of_head

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines [T, rotated elements of a head] each."""


class Fused(torch.nn.Module):
    """A module that computes with operations of a backend."""

    ops: LayerOps = TorchLayerOps()


class Norm(Fused):
    """RMS norm [.., width], alone or with what comes to the residual before it."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.weight = source.weight
        eps = getattr(source, "variance_epsilon", None)
        self.eps = float(source.eps if eps is None else eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [.., width]"""
        return self.ops.norm(x.reshape(-1, x.shape[-1]), self.weight, self.eps).view(x.shape)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Add x [T, width] to the residual [T, width], in place, and return the norm of that."""
        if self._forward_hooks:  # an adapter's own norm: its hook has to see what goes in
            residual += x
            out: torch.Tensor = self(residual)
            return out
        return self.ops.norm(x, self.weight, self.eps, residual=residual)


class Attention(Fused):
    """Queries, keys and values in one product, and what they are for."""

    def __init__(self, source: Any, config: Any, spec: Spec, layer: int) -> None:
        super().__init__()
        self._layer = layer
        self._qkv = taken(source, self, spec.qkv, "qkv")
        self._out = taken(source, self, ("o_proj",), "out")
        self._heads = HeadSpec(config.num_attention_heads, config.num_key_value_heads, width_of_head(config))
        self._scaling, self._window = spec.scaling(config), spec.window(config, layer)

    def forward(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """x [T, hidden]; returns likewise."""
        qkv = self._qkv[0].product(x)
        seen = attend_packed(
            self._layer,
            qkv,
            self._heads,
            *rotation,
            ops=self.ops,
            scaling=self._scaling,
            sliding_window=self._window,
        )
        return self._out[0].product(seen)


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


class Layer(torch.nn.Module):
    """Attention and gated layers around one residual."""

    def __init__(self, source: Any, config: Any, spec: Spec, layer: int) -> None:
        super().__init__()
        self.input_layernorm = Norm(source.input_layernorm)
        self.self_attn = Attention(source.self_attn, config, spec, layer)
        self.post_attention_layernorm = Norm(source.post_attention_layernorm)
        self.mlp = Mlp(source.mlp, config, spec)

    def forward(self, x: torch.Tensor | None, residual: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """x [T, hidden] is still to be added to the residual [T, hidden], which changes in place; returns what comes after it."""
        normed = self.input_layernorm(residual) if x is None else self.input_layernorm.add(x, residual)
        attended = self.self_attn(normed, rotation)
        out: torch.Tensor = self.mlp(self.post_attention_layernorm.add(attended, residual))
        return out


def taken(source: torch.nn.Module, owner: torch.nn.Module, names: tuple[str, ...], whole: str) -> tuple[Linear]:
    """Return the product of some modules of `source` by their names, which stand in `owner` from now on. A tuple: it is no child twice."""
    linear = Linear([getattr(source, name) for name in names])
    if len(names) == 1:
        owner.add_module(names[0], linear)
    else:
        owner.add_module(whole, linear)
        for name, part in zip(names, linear.parts, strict=True):
            owner.add_module(name, part)
    return (linear,)
