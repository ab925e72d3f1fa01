"""GPT-J: attention with rotary positions of interleaved pairs over paged KV."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.gptj.modeling_gptj import GPTJAttention, apply_rotary_pos_emb

from lorafleet_inference.model.attention import NAME, attend


class PagedGPTJAttention(GPTJAttention):
    """As its parent, but keys and values are written and read by `attend`."""

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        """hidden_states [1, T, hidden], position_ids [1, T]; returns the shape of hidden_states."""
        projected = (projection(hidden_states) for projection in (self.q_proj, self.k_proj, self.v_proj))
        query, key, value = (one.unflatten(-1, (self.num_attention_heads, self.head_dim)) for one in projected)
        sin, cos = self.embed_positions[position_ids].to(key.dtype).chunk(2, dim=-1)
        query, key = (self._rotated(one, sin, cos).transpose(1, 2) for one in (query, key))
        out, _weights = attend(self, query, key, value.transpose(1, 2), scaling=1 / self.scale_attn)
        return self.out_proj(out.flatten(2)), None

    def _rotated(self, heads: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        """[1, T, H, D]: its first `rotary_dim` columns are rotated, all without one."""
        if self.rotary_dim is None:
            return apply_rotary_pos_emb(heads, sin, cos)
        rotary, rest = heads[..., : self.rotary_dim], heads[..., self.rotary_dim :]
        return torch.cat([apply_rotary_pos_emb(rotary, sin, cos), rest], dim=-1)


def patch(model: PreTrainedModel, max_model_len: int) -> None:  # noqa: ARG001  its table of positions is long enough
    """Give the model our attention."""
    for module in model.modules():
        if type(module) is GPTJAttention:
            module.__class__ = PagedGPTJAttention
    model.config._attn_implementation = NAME  # noqa: SLF001  no mask is made for a name that has no mask function
