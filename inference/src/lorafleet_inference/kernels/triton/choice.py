"""Tokens of a step, chosen by one launch."""

from typing import Final

import torch

from lorafleet_inference.kernels.triton.launch import launch
from lorafleet_inference.kernels.triton.sampling import NUM_WANTED, choose

CHUNK: Final = 1024
"""Tokens of one round."""
PIVOTS: Final = 8
"""Scores of which one pass over the vocabulary tells on which side the threshold lies."""
WARPS: Final = 8


def choose_tokens(
    logits: torch.Tensor, wanted: torch.Tensor, *, chunk: int = CHUNK
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens [rows] int64 and whether each row is finite, bool.

    logits [rows, vocabulary] of any float dtype; wanted [rows, 5] float64, as `sampling.py` says.
    """
    assert wanted.shape == (logits.shape[0], NUM_WANTED)
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    tokens = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    is_finite = torch.empty(logits.shape[0], dtype=torch.int8, device=logits.device)
    launch(
        choose,
        (logits.shape[0],),
        (tokens, is_finite, logits, logits.stride(0), wanted, logits.shape[1]),
        {"CHUNK": chunk, "PIVOTS": PIVOTS, "num_warps": WARPS, "num_stages": 3},
    )
    return tokens, is_finite.bool()
