"""Pages of keys or values in 8 bits, by plain torch: the reference of the kernels that write and read them.

Of each row (a token's key or value of one head) there are the e4m3 codes of its elements and one exponent, chosen so that the
largest element takes the upper half of what e4m3 can say: a row never saturates, nothing is calibrated, and what one token's row
says does not depend on what was in its block before. As the factor is a power of two, rounding to e4m3 is the only error: the
number that is read is exact in bfloat16 and float32, and so the same by every backend.

Pages [num_blocks, G, P, width + 1] uint8, P tokens of a block: of each block and head first P rows of `width` codes, then P
exponents. number = e4m3(code) / 256 * 2 ** (exponent - 127); exponent 0 says 0, and 255 NaN: the row had an element
that is not finite, or none that float32 holds with room for a rounding.
"""

from typing import Final

import torch

DTYPE: Final = torch.uint8
CODE: Final = torch.float8_e4m3fn
ROUND_UP: Final = 0x1FFFFF
"""Carries into the exponent what is above 1.75 times a power of two: 1.75 is the largest code, divided by 256."""
POISON: Final = 255
_MAGNITUDE: Final = 0x7FFFFFFF


def row_bytes(width: int) -> int:
    """Return the bytes of one row: its codes and its exponent."""
    return width + 1


def is_fp8(pages: torch.Tensor) -> bool:
    """Whether pages are in 8 bits."""
    return pages.dtype == DTYPE


def width_of(pages: torch.Tensor) -> int:
    """Return the elements of a row."""
    return pages.shape[3] - is_fp8(pages)


def encode(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes [.., width] and exponents [..], both uint8, of rows [.., width]."""
    wide = rows.float().contiguous()
    top = (wide.view(torch.int32) & _MAGNITUDE).amax(-1).long()
    exponents = (top + ROUND_UP) >> 23
    poisoned = exponents >= POISON - 1
    inverse = ((POISON - 1 - exponents).clamp(min=1) << 23).int().view(torch.float32)
    codes = (wide * inverse[..., None] * 256.0).to(CODE).view(DTYPE)
    codes = codes.masked_fill(poisoned[..., None], 0)
    return codes, exponents.masked_fill(poisoned, POISON).to(DTYPE)


def decode(codes: torch.Tensor, exponents: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the numbers [.., width] of codes [.., width] and exponents [..]."""
    factors = (exponents.int() << 23).view(torch.float32).masked_fill(exponents == POISON, float("nan"))
    return (codes.view(CODE).float() / 256.0 * factors[..., None]).to(dtype)


def write(source: torch.Tensor, pages: torch.Tensor, blocks: torch.Tensor, offsets: torch.Tensor) -> None:
    """Write source [G, T, width] to pages of either kind; blocks and offsets [T] int64: the place of each token."""
    if not is_fp8(pages):
        pages[blocks, :, offsets] = source.transpose(0, 1)
        return
    for part, some in zip(_parts(pages), encode(source.transpose(0, 1)), strict=True):
        part[blocks, :, offsets] = some


def gather(pages: torch.Tensor, blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the numbers of the pages of blocks [..] int64, of either kind: [.., G, P, width]."""
    taken = pages[blocks]
    return decode(*_parts(taken), dtype) if is_fp8(pages) else taken


def _parts(pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return views of the codes [.., P, width] and the exponents [.., P] of contiguous pages."""
    tokens, width = pages.shape[-2], pages.shape[-1] - 1
    flat = pages.flatten(-2)
    return flat[..., : tokens * width].unflatten(-1, (tokens, width)), flat[..., tokens * width :]
