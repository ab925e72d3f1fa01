"""Falcon: multi-query, grouped ("new decoder") and alibi attention over paged KV."""

import math
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.falcon.modeling_falcon import FalconAttention, apply_rotary_pos_emb, build_alibi_tensor

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.model.attention import NAME, attend


class PagedFalconAttention(FalconAttention):
    """As its parent, but keys and values are written and read by `attend`, and never repeated for their queries."""

    key_bias: torch.Tensor | None = None
    """[H, positions], in the model's dtype, on its device: alibi; None with rotary positions."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """hidden_states [1, T, hidden]; returns the same shape."""
        query, key, value = self._heads(self.query_key_value(hidden_states))
        if self.key_bias is None:
            assert position_embeddings is not None
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        out, _weights = attend(self, query, key, value, scaling=self.inv_norm_factor, key_bias=self.key_bias)
        return self.dense(out.flatten(2)), None

    def _heads(self, fused: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Split [1, T, (H + 2 G) D]: each group of queries is followed by its key and its value."""
        _, tokens, _ = fused.shape
        groups = fused.view(1, tokens, self.num_kv_heads, self.num_heads // self.num_kv_heads + 2, self.head_dim)
        query = groups[..., :-2, :].flatten(2, 3).transpose(1, 2)
        return query, groups[..., -2, :].transpose(1, 2), groups[..., -1, :].transpose(1, 2)


def patch(model: PreTrainedModel, max_model_len: int) -> None:
    """Give the model our attention."""
    config = model.config
    key_bias = None
    if config.alibi:
        positions = torch.ones(1, max_model_len + KV_BLOCK_TOKENS, dtype=torch.int64, device=model.device)
        alibi = build_alibi_tensor(positions, config.num_attention_heads, dtype=model.dtype)
        # Falcon divides alibi, too, by the root of the head width
        key_bias = alibi[:, 0] / math.sqrt(config.hidden_size // config.num_attention_heads)
    for module in model.modules():
        if type(module) is FalconAttention:
            module.__class__ = PagedFalconAttention
            module.key_bias = key_bias
    config._attn_implementation = NAME  # noqa: SLF001  no mask is made for a name that has no mask function
