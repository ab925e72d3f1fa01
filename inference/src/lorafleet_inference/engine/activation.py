"""From which token of a sequence on an adapter is computed. Pure.

An activated adapter (aLoRA) is computed from the last occurrence of its invocation in the prompt on, answer included. What
stands before is the base's, and so is all of a sequence whose prompt does not have the invocation, whatever is in its answer.
"""

from collections.abc import Sequence

NEVER = 1 << 62
"""Beyond the end of any sequence."""


def activation(prompt: Sequence[int], invocation: Sequence[int]) -> int:
    """Return the position of the first token that an adapter is computed for; `invocation` is empty for one that always is."""
    if not invocation:
        return 0
    # backwards, because it stands near the end; `index` is faster than a loop
    backwards, wanted = tuple(prompt)[::-1], tuple(invocation)[::-1]
    at, end = -1, len(backwards)
    try:
        while True:
            at = backwards.index(wanted[0], at + 1)
            if backwards[at : at + len(wanted)] == wanted:
                return end - at - len(wanted)
    except ValueError:
        return NEVER
