"""What the kernels for products with quantised weights are for; here for those who only reckon, where Triton is not."""

from typing import Final

MAX_TOKENS: Final = 64
"""A product of more tokens is bound by arithmetic: the weight is brought back once, and torch multiplies."""
MAX_GROUPED_TOKENS: Final = 1024
"""Likewise of experts, of which each has a part of the tokens: as many as the largest step that is captured has."""
ALIGN: Final = 32
"""Widths are multiples of so many columns, so that several codes are loaded at once."""
