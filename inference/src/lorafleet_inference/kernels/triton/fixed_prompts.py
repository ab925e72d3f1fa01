"""Attention of a step with prompts whose tables lie at fixed addresses.

A prompt is cut into pieces: `prefill` starts as many programs for each as for the longest there can be, and those of pieces that a
step does not have end at once.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from lorafleet_inference.kernels.triton.blocks import Blocks
from lorafleet_inference.kernels.triton.fixed import FixedTables
from lorafleet_inference.kernels.triton.paged import AttentionStep
from lorafleet_inference.kernels.triton.step import Given

Ints = np.ndarray[Any, np.dtype[np.int64]]


class FixedPrompts(AttentionStep):
    """Attention of as many sequences with one token, and of as many pieces of others, as there is room for."""

    def __init__(self, blocks: Blocks, tables: FixedTables, max_tokens: int, piece_tokens: int) -> None:
        """`max_tokens`: of one sequence; `piece_tokens`: of a piece, at most."""
        room = tables.room
        self._blocks, self._slots = blocks, Given(tables.tensor("slots"))
        self._num_decodes, self._num_chunks, self._longest_chunk = room.num_decodes, room.num_pieces, piece_tokens
        self._longest_decode = max_tokens
        self._tables, self._rows, self._lasts, self._chunks = (
            Given(tables.tensor(name)) for name in ("tables", "decodes", "lasts", "pieces")
        )
        self._parts, self._tops = torch.empty(0), torch.empty(0)


def fill(
    here: Mapping[str, np.ndarray[Any, Any]],
    begins: Ints,
    starts: Ints,
    counts: Ints,
    tables: np.ndarray[Any, Any],
    *,
    piece_tokens: int,
) -> None:
    """Write the tables of `FixedPrompts` into `here`, which holds padding.

    Of each sequence: begins [S], its first row of the batch; starts [S], the position of that; counts [S], its tokens; tables
    [S, blocks]. Where there is no room for decodes, a single token is a piece.
    """
    is_decode = (counts == 1) if here["decodes"].size else np.zeros(len(counts), dtype=np.bool_)
    order = np.argsort(~is_decode, kind="stable")  # `decode` takes the first rows of the tables
    num_decodes = int(is_decode.sum())
    decodes = order[:num_decodes]
    here["tables"][: len(order), : tables.shape[1]] = tables[order]
    here["decodes"][:num_decodes] = begins[decodes]
    here["lasts"][:num_decodes] = starts[decodes]
    pieces = [
        (row, begins[sequence] + at, starts[sequence] + at, min(piece_tokens, counts[sequence] - at))
        for row, sequence in enumerate(order[num_decodes:].tolist(), num_decodes)
        for at in range(0, int(counts[sequence]), piece_tokens)
    ]
    if pieces:
        here["pieces"][: len(pieces)] = pieces
