"""Bloom: alibi attention over paged KV."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.model.attention import NAME, attend


class PagedBloomAttention(BloomAttention):
    """As its parent, but keys and values are written and read by `attend`."""

    key_bias: torch.Tensor
    """[H, positions], in the model's dtype, on its device: alibi."""

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        """hidden_states and residual [1, T, hidden]; returns the same shape, the residual added."""
        query, key, value = self._reshape(self.query_key_value(hidden_states))
        out, _weights = attend(self, query, key, value, scaling=self.inv_norm_factor, key_bias=self.key_bias)
        return self.dense(out.flatten(2)) + residual, None


def patch(model: PreTrainedModel, max_model_len: int) -> None:
    """Give the model our attention."""
    positions = torch.ones(1, max_model_len + KV_BLOCK_TOKENS, dtype=torch.int64, device=model.device)
    key_bias = build_alibi_tensor(positions, model.config.n_head, dtype=model.dtype)[:, 0]
    for module in model.modules():
        if type(module) is BloomAttention:
            module.__class__ = PagedBloomAttention
            module.key_bias = key_bias
    model.config._attn_implementation = NAME  # noqa: SLF001  no mask is made for a name that has no mask function
