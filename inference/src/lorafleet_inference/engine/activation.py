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
    # backwards, because it stands near the end
    backwards, wanted = tuple(prompt)[::-1], tuple(invocation)[::-1]
    borders = _borders(wanted)
    at = matched = 0
    while at < len(backwards):
        if not matched:
            try:
                at = backwards.index(wanted[0], at)  # faster than a loop
            except ValueError:
                return NEVER
        if backwards[at] == wanted[matched]:
            at, matched = at + 1, matched + 1
            if matched == len(wanted):
                return len(backwards) - at
        else:
            matched = borders[matched - 1]
    return NEVER


def _borders(wanted: Sequence[int]) -> list[int]:
    """Return, for each beginning of what is looked for, how much of its end is a beginning too (Knuth, Morris, Pratt).

    With it no token of the prompt is looked at twice, so that a prompt that almost has an invocation everywhere takes no longer.
    """
    borders, length = [0], 0
    for token in wanted[1:]:
        while length and token != wanted[length]:
            length = borders[length - 1]
        length += token == wanted[length]
        borders.append(length)
    return borders
