"""Rotary frequencies that depend on the length of a sequence. Pure.

Up to a limit all tokens have the same ones. Beyond it they follow a length of their own, which is part of what a token's KV
depends on.
"""

from lorafleet_inference.engine.messages import LengthRope, RopeKind


def rope_length(rope: LengthRope | None, num_tokens: int) -> int:
    """Return the length that the frequencies of a sequence's tokens follow when it is first computed; 0 up to the limit.

    Each token follows this length, or its own position + 1 where that is more.
    """
    if rope is None or num_tokens <= rope.limit:
        return 0
    return rope.limit + 1 if rope.kind is RopeKind.LONGROPE else num_tokens


def must_restart(rope: LengthRope | None, length: int, num_tokens: int) -> bool:
    """Whether a sequence that follows `length` and has grown to `num_tokens` has to be computed again."""
    return rope is not None and rope.kind is RopeKind.LONGROPE and not length and num_tokens > rope.limit
