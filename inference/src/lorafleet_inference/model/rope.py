"""Rotary embeddings whose frequencies depend on the length of the sequence, for sequences of several lengths in one batch.

transformers takes the length of a forward pass, which has sequences of one length there, from its largest position. Here
each token has a length of its own. The arithmetic is transformers'.
Axes: T tokens of the step, W half of the rotated width.
"""

import copy
import logging
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lorafleet_inference.engine.messages import LengthRope, RopeKind
from lorafleet_inference.model.batch import FlatBatch

logger = logging.getLogger(__name__)
TOLERANCE = 1e-3
"""Of cosines and sines, against transformers' own."""
Out = torch.Tensor | tuple[torch.Tensor, ...]
"""What a rotary embedding returns: [1, T, ..] each."""


def rotary_modules(model: torch.nn.Module) -> list[Any]:
    """Return the modules that make cosines and sines of positions, with one kind of frequencies each."""
    return [
        one for one in model.modules() if isinstance(getattr(one, "rope_type", None), str) and hasattr(one, "inv_freq")
    ]


def length_rope(model: PreTrainedModel, longest: int) -> tuple[LengthRope | None, int]:
    """Return how frequencies depend on the length, and the longest context that is computed as transformers computes it.

    `longest`: positions that the config names. dynamic stretches them by its factor.
    """
    config = model.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [one for one in parameters.values() if isinstance(one, dict)]
    modules = rotary_modules(model)
    if nested or not modules:  # frequencies by layer, or made in another way than most families make them
        longropes = [one for one in (parameters, *nested) if one.get("rope_type") == RopeKind.LONGROPE]
        limit = min([longest, *(_original_length(one, config) for one in longropes)])
        if limit < longest:
            logger.warning(
                "a longrope that differs by layer is computed up to its limit, so the context is %d tokens", limit
            )
        return None, limit
    kinds = {module.rope_type for module in modules}
    if RopeKind.LONGROPE in kinds:
        limit = min(longest, _original_length(parameters, config))
        return (LengthRope(RopeKind.LONGROPE, limit) if limit < longest else None), longest
    stretched = int(longest * float(parameters["factor"])) if RopeKind.DYNAMIC in kinds else longest
    return (LengthRope(RopeKind.DYNAMIC, longest) if stretched > longest else None), stretched


def _original_length(parameters: dict[str, Any], config: Any) -> int:
    own = getattr(config, "original_max_position_embeddings", None)
    return int(parameters.get("original_max_position_embeddings") or own or config.max_position_embeddings)


class LengthRopes:
    """The rotary embeddings of a model, which follow the length of each token from now on."""

    def __init__(self, model: PreTrainedModel, rope: LengthRope) -> None:
        self._rope = rope
        self._lengths: torch.Tensor | None = None
        """[1, T] int64, on the device: the length that each token follows; None where none is beyond the limit."""
        self._modules = [(module, copy.deepcopy(module)) for module in rotary_modules(model)]
        for module, _ in self._modules:
            self._adapt(module)

    def begin_step(self, batch: FlatBatch) -> None:
        """Say which lengths the tokens of the coming forward pass follow."""
        limit = self._rope.limit
        self._lengths = None
        host = batch.host
        if (np.maximum(host.rope_lengths, host.starts + host.counts) <= limit).all():
            return
        least = torch.from_numpy(np.repeat(host.rope_lengths, host.counts)).to(batch.input_ids.device)
        self._lengths = torch.maximum(least, batch.position_ids + 1)

    @torch.inference_mode()
    def are_exact(self) -> bool:
        """Whether all of them, with two lengths in one batch, make what transformers makes of one length at a time."""
        limit = self._rope.limit
        short, long = [0, 1], [2, limit + 3]
        for module, original in self._modules:
            device = module.inv_freq.device
            x = torch.zeros(1, device=device)
            wanted = [original(x, torch.tensor([positions], device=device)) for positions in (short, long)]
            self._lengths = torch.tensor([[limit] * len(short) + [limit + 4] * len(long)], device=device)
            made = module(x, torch.tensor([short + long], device=device))
            self._lengths = None
            expected = [torch.cat(parts, 1) for parts in zip(*map(_parts, wanted), strict=True)]
            for one, other in zip(_parts(made), expected, strict=True):
                if one.shape != other.shape or (one - other).abs().max() > TOLERANCE:
                    return False
        return True

    def _adapt(self, module: Any) -> None:
        plain = module.forward
        original = module.inv_freq
        if self._rope.kind is RopeKind.DYNAMIC:
            module.max_seq_len_cached, module.original_max_seq_len = sys.maxsize, 0  # it takes no length by itself

        def forward(x: torch.Tensor, position_ids: torch.Tensor, **kwargs: Any) -> Out:
            if self._lengths is None:
                return plain(x, position_ids, **kwargs)
            if self._rope.kind is RopeKind.LONGROPE:
                return self._longrope(lambda positions: plain(x, positions, **kwargs), position_ids)
            module.inv_freq = self._dynamic(module.config, original)
            try:
                return plain(x, position_ids, **kwargs)
            finally:
                module.inv_freq = original

        module.forward = forward

    def _longrope(self, made: Callable[[torch.Tensor], Out], position_ids: torch.Tensor) -> Out:
        """Make both, of short and of long sequences, and give each token its own."""
        assert self._lengths is not None
        is_long = self._lengths > self._rope.limit
        beyond = torch.full_like(position_ids[..., :1], self._rope.limit)
        long = made(torch.cat([position_ids, beyond], -1))
        short = made(position_ids.masked_fill(is_long, 0))
        chosen = tuple(
            torch.where(is_long.view(is_long.shape + (1,) * (one.dim() - 2)), one[:, :-1], other)
            for one, other in zip(_parts(long), _parts(short), strict=True)
        )
        return chosen if isinstance(long, tuple) else chosen[0]

    def _dynamic(self, config: Any, original: torch.Tensor) -> torch.Tensor:
        """[1, T, W]: the frequencies of each token."""
        assert self._lengths is not None
        lengths = self._lengths[..., None]
        stretched, _scaling = ROPE_INIT_FUNCTIONS[RopeKind.DYNAMIC](config, lengths.device, seq_len=lengths)
        return torch.where(lengths > self._rope.limit, stretched, original)


def _parts(out: Out) -> tuple[torch.Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)
