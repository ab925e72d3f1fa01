"""A tensor in pages of adapter memory, which need not be neighbours: computed with where it lies; in one piece it is a view."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional as F  # noqa: N812

from lorafleet_inference.adapters.extra_tensors import ExtraTensor, Span
from lorafleet_inference.engine.free_pages import runs_of


def runs_in(pages: Sequence[int], page: int) -> Iterator[tuple[int, int]]:
    """Yield where runs of neighbouring pages begin and end, in elements. `page`: elements of one."""
    for begin, end in runs_of(pages):
        yield begin * page, end * page


class LaidTensor:
    """A tensor that lies where its spans say. Rows are those along its first axis, or along the first two of three."""

    def __init__(
        self, pool: torch.Tensor, one: ExtraTensor, spans: Sequence[Span], shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        """In `pool` [pages, elements of a page], where somebody copies it to; no other copy is made on the device."""
        number, width = one.rows(pool.shape[1])
        items = dtype.itemsize // pool.dtype.itemsize  # elements of the pool for each of the tensor's
        assert math.prod(shape) * items == one.num_elements, f"{one} was reckoned with, and there is {list(shape)}"
        self.shape = shape
        self._is_by_rows = number == one.num_rows
        flat = pool.view(-1)
        self._blocks = []
        """[rows, elements] each, and which rows they are."""
        for span in spans:
            size = (span.end - span.begin) * width
            block = flat[span.at : span.at + size].view(dtype).view(span.end - span.begin, width // items)
            self._blocks.append((span.begin, span.end, block))

    @property
    def is_in_one_piece(self) -> bool:
        """Whether `whole` is a view."""
        return len(self._blocks) == 1

    def whole(self) -> torch.Tensor:
        """Return the tensor: a view, or where it is in pieces a copy."""
        return _joined([block for _, _, block in self._blocks]).view(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return one of [E, r, width]: a view, or where it is in pieces a copy."""
        if self.is_in_one_piece or not self._is_by_rows:
            return self.whole()[index]
        first, last = index * self.shape[1], (index + 1) * self.shape[1]
        found = [
            block[max(first, begin) - begin : min(last, end) - begin]
            for begin, end, block in self._blocks
            if begin < last and first < end
        ]
        return _joined(found)

    def linear(
        self, x: torch.Tensor, out: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return x [.., in] times this [rows, in], plus a bias [rows]: [.., rows], in `out` where it is given."""
        blocks = self._rows()
        if out is None:
            if len(blocks) == 1:
                return F.linear(x, blocks[0][2], bias)
            out = x.new_empty(*x.shape[:-1], len(self))
        for begin, end, block in blocks:
            out[..., begin:end] = F.linear(x, block, None if bias is None else bias[begin:end])
        return out

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [.., rows] this [rows, width]: [.., width]."""
        (begin, end, block), *others = self._rows()
        out = x[..., begin:end] @ block
        for begin, end, block in others:
            out += x[..., begin:end] @ block
        return out

    def embedding(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows [.., width] of ids [..] int64, all of them below the number of rows."""
        (_, _, first), *others = self._rows()
        out = F.embedding(ids.clamp(max=len(first) - 1), first) if others else F.embedding(ids, first)
        for begin, end, block in others:
            is_here = ((ids >= begin) & (ids < end))[..., None]
            out = torch.where(is_here, F.embedding((ids - begin).clamp(0, end - begin - 1), block), out)
        return out

    def _rows(self) -> Sequence[tuple[int, int, torch.Tensor]]:
        if self.is_in_one_piece or not self._is_by_rows:
            return [(0, len(self), self.whole())]
        return self._blocks


def _joined(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(tuple(blocks))
