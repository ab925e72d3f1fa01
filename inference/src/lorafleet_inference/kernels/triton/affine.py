"""What adapters change in the output of a module beside A and B: y = scale_a * y + offset_a, each token with its own adapter a.

DoRA's norms are a scale, biases of adapters an offset. Both are rows as wide as the module's output, one after the other in pages of
PAGE elements as `side.py` says. `items` [items, 3] as `lora.py` says; `pages` [adapters, ..]: the pages of each adapter; `entries`
[adapters, modules]: the row of the scale at each module, behind which is the offset; -1 where the adapter has none. `slices`
[slices, 4] says of each module of a site: its number, its first column of y, its width, then nothing. Columns and widths are
multiples of ALIGN elements.
"""

import triton
import triton.language as tl

ALIGN = tl.constexpr(16)


@triton.jit(do_not_specialize=["pages_stride", "entries_stride"])
def affine(
    y, y_stride, pool, page, items, pages, pages_stride, entries, entries_stride, slices,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Grid: (items, tiles of WIDTH columns of the widest slice, slices)."""
    item, slice = tl.program_id(0), tl.program_id(2)
    count = tl.load(items + item * 3 + 2)
    if count == 0:
        return
    adapter, first = tl.load(items + item * 3), tl.load(items + item * 3 + 1)
    row = tl.load(entries + adapter * entries_stride + tl.load(slices + slice * 4))
    width = tl.multiple_of(tl.load(slices + slice * 4 + 2), ALIGN)
    if (row < 0) | (tl.program_id(1) * WIDTH >= width):
        return
    n, fit = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH), page // width
    own = pages + adapter * pages_stride
    is_column = n < width
    of_scale = tl.load(own + row // fit).to(tl.int64) * page + (row % fit) * width
    of_offset = tl.load(own + (row + 1) // fit).to(tl.int64) * page + ((row + 1) % fit) * width
    scale = tl.load(pool + tl.multiple_of(of_scale, ALIGN) + n, mask=is_column, other=0.0).to(tl.float32)
    offset = tl.load(pool + tl.multiple_of(of_offset, ALIGN) + n, mask=is_column, other=0.0).to(tl.float32)
    lane = tl.arange(0, TOKENS)
    out = y + (first + lane)[:, None].to(tl.int64) * y_stride + tl.multiple_of(tl.load(slices + slice * 4 + 1), ALIGN)
    fits = (lane < count)[:, None] & is_column[None, :]
    kept = tl.load(out + n[None, :], mask=fits, other=0.0).to(tl.float32)
    tl.store(out + n[None, :], (kept * scale[None, :] + offset[None, :]).to(y.dtype.element_ty), mask=fits)
