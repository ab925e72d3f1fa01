"""How a pod tells a gateway the tokens of a request, whatever the client asked to be told."""

import re
from typing import Final

HEADER_USAGE: Final = "x-lorafleet-usage"
"""In a request to a pod, with any value: tell the usage. In a whole answer: the usage."""
USAGE_COMMENT: Final = f": {HEADER_USAGE} ".encode()
"""Begins a line of a stream that event streams have for comments: clients pass over it."""
MAX_USAGE: Final = 64
_USAGE: Final = re.compile(r"([0-9]{1,18})\+([0-9]{1,18})")


def usage_text(num_prompt_tokens: int, num_completion_tokens: int) -> str:
    """Return the tokens of prompt and answer as the header has them."""
    return f"{num_prompt_tokens}+{num_completion_tokens}"


def usage_comment(num_prompt_tokens: int, num_completion_tokens: int) -> bytes:
    """Return the same for a stream, to be sent between two events."""
    return USAGE_COMMENT + usage_text(num_prompt_tokens, num_completion_tokens).encode() + b"\n\n"


def tokens_of(text: str) -> int | None:
    """Return the tokens of prompt and answer together; None where the text is none of `usage_text`."""
    found = _USAGE.fullmatch(text)
    return int(found[1]) + int(found[2]) if found else None
