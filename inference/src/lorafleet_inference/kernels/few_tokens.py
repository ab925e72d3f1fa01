"""What the kernels for products with quantised weights are for; here for those who only reckon, where Triton is not."""

from typing import Final

MAX_TOKENS: Final = 64
"""A product of more tokens is bound by arithmetic: the weight is brought back once, and torch multiplies."""
ALIGN: Final = 32
"""Widths are multiples of so many columns, so that several codes are loaded at once."""
