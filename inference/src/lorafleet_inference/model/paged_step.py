"""The pages of KV, and one step's way through them: which tokens go where, and what each sequence reads.

Axes: G key-value heads, D head width of keys, E of values, T tokens of the batch, N tokens of KV, B decoding sequences.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from lorafleet_inference.config import KV_BLOCK_TOKENS
from lorafleet_inference.kernels import fp8_pages
from lorafleet_inference.kernels.cpu import CpuKernels, PagedDecode
from lorafleet_inference.model.batch import FlatBatch, Span

if TYPE_CHECKING:  # Triton is there on Linux alone
    from lorafleet_inference.kernels.triton.paged import AttentionStep

DECODE_GROUP = 64
"""At most so many decoding sequences are gathered together; sorted by length, so that little is padded."""


@dataclass(slots=True)
class LayerKV:
    """Pages of one layer."""

    keys: torch.Tensor
    """[num_blocks, G, KV_BLOCK_TOKENS, D], in the model's dtype, or in 8 bits as `kernels/fp8_pages.py` says; on the device."""
    values: torch.Tensor
    """[num_blocks, G, KV_BLOCK_TOKENS, E], likewise."""

    @property
    def are_rounded(self) -> bool:
        """Whether what is read is not what was written."""
        return fp8_pages.is_fp8(self.keys)


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
        fp8_pages.write(source, pages, *self.places)

    @cached_property
    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Block of each token, and its offset in the block; both [T] int64, on the device."""
        if self._batch is None:
            raise RuntimeError("a layer has an attention that is left to torch")
        return self._batch.slots // KV_BLOCK_TOKENS, self._batch.slots % KV_BLOCK_TOKENS

    @cached_property
    def prefills(self) -> "list[Prefill]":
        """Sequences with several tokens in the step."""
        assert self._batch is not None, "`places` has said so"
        device = self._batch.slots.device
        return [
            Prefill(self._batch.host.span(index), device)
            for index in np.flatnonzero(self._batch.host.counts > 1).tolist()
        ]

    @cached_property
    def decodes(self) -> "list[Decode]":
        """Sequences with one token in the step, where there are no kernels of the CPU."""
        groups = range(0, len(self._decodes) if self._kernels is None else 0, DECODE_GROUP)
        assert self._batch is not None, "`places` has said so"
        return [Decode(self._batch, self._decodes[at : at + DECODE_GROUP]) for at in groups]

    @cached_property
    def compiled(self) -> PagedDecode | None:
        """Instead of `decodes`, where the kernels of the CPU can read the pages."""
        if self._batch is None or self._kernels is None or not len(self._decodes):
            return None
        spans = [self._batch.host.span(index) for index in self._decodes.tolist()]
        rows, starts, blocks = ([getattr(span, name) for span in spans] for name in ("begin", "start", "blocks"))
        return PagedDecode(self._kernels, rows, starts, blocks)


class Prefill:
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


class Decode:
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

    def known(self, pages: torch.Tensor, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Gather pages: [B, G, N, width], with zeros where the token does not see.

        What lies there is nobody's, or another sequence's: a weight of 0 times NaN would be NaN.
        """
        gathered = fp8_pages.gather(pages, self.blocks, dtype).transpose(1, 2).flatten(2, 3)
        return gathered.masked_fill_(~self.mask(window).transpose(2, 3), 0.0)
