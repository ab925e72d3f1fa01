"""How many pods an adapter is kept on by the load that it has: in proportion, sticky, a few moves at a time. Pure.

Rises after one window, as requests wait now; falls after five, as what was loud is often loud again. A window is a minute.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

WINDOWS_BEFORE_FALL: Final = 5
SPREAD: Final = 6.0
"""How many times as many pods as its part of the tokens comes to: so that requests can go where little is to be done."""
FOR_LOWER_BOUNDS: Final = 0.875
"""Part of the places that lower bounds may take; the rest goes to those that are asked for most."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """On how many pods an adapter may be kept."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Share:
    """On how many pods an adapter is kept, and what the last windows would have had."""

    num_pods: int
    lower: tuple[int, ...] = ()
    """Of the windows in a row that would have had it on fewer."""


def worthwhile(rates: Mapping[str, float], bounds: Mapping[str, Bounds], num_pods: int) -> dict[str, Bounds]:
    """Return the bounds, narrowed to what an adapter has use for: its part of all tokens in pods, and some times as many.

    Else adapters that are hardly asked for would be loaded everywhere as long as there is room.
    """
    whole = sum(rates.get(name, 0.0) for name in bounds)
    narrowed = {}
    for name, bound in bounds.items():
        use = math.ceil(SPREAD * num_pods * rates.get(name, 0.0) / whole) if whole > 0 else 0
        narrowed[name] = Bounds(bound.least, min(bound.most, max(bound.least, use)))
    return narrowed


def proportional(rates: Mapping[str, float], bounds: Mapping[str, Bounds], total: int) -> dict[str, int]:
    """Return how many pods each adapter deserves, by largest remainder within its bounds.

    Args:
        rates: name -> tokens a second; none is zero.
        bounds: of every adapter.
        total: places for all of them.

    Where the lower bounds come to more than a part of the places, those of the adapters that are asked for least are
    given up: else what everybody asks for would be on one pod like all others.
    """
    bounds = _affordable(rates, bounds, total)
    fixed: dict[str, int] = {}
    free = set(bounds)
    while True:
        room, weight = total - sum(fixed.values()), sum(rates.get(name, 0.0) for name in free)
        quotas = {name: max(0, room) * rates.get(name, 0.0) / weight if weight > 0 else 0.0 for name in free}
        low = {name for name in free if quotas[name] <= bounds[name].least}
        high = {name for name in free if quotas[name] >= bounds[name].most} - low
        # one side at a time, the one that takes more: what the other would get depends on it
        lacking = sum(bounds[name].least - quotas[name] for name in low)
        beyond = sum(quotas[name] - bounds[name].most for name in high)
        bound = low if lacking >= beyond and low else high
        if not bound:
            break
        for name in bound:
            fixed[name] = bounds[name].least if bound is low else bounds[name].most
        free -= bound
    deserved = fixed | {name: math.floor(quotas[name]) for name in free}
    left = total - sum(deserved.values())
    for name in sorted(free, key=lambda name: (math.floor(quotas[name]) - quotas[name], name))[: max(0, left)]:
        deserved[name] += 1
    return deserved


def _affordable(rates: Mapping[str, float], bounds: Mapping[str, Bounds], total: int) -> dict[str, Bounds]:
    """Return the bounds, without the lower ones that there is no room for."""
    left = (
        total * FOR_LOWER_BOUNDS if sum(bound.least for bound in bounds.values()) > total * FOR_LOWER_BOUNDS else total
    )
    kept = {}
    for name in sorted(bounds, key=lambda name: (-rates.get(name, 0.0), name)):
        bound = bounds[name]
        kept[name] = bound if bound.least <= left else Bounds(0, bound.most)
        left -= kept[name].least
    return kept


def next_shares(
    before: Mapping[str, Share],
    deserved: Mapping[str, int],
    bounds: Mapping[str, Bounds],
    *,
    total: int,
    max_moves: int,
) -> dict[str, Share]:
    """Return the shares after one more window.

    Args:
        before: those of the window before; an adapter that has none begins with what it deserves.
        deserved: of this window.
        bounds: of every adapter: what they say holds at once, and counts as no move.
        total: places for all of them: who deserves less falls at once where those that rise need the place.
        max_moves: pods that adapters may be put on or taken from in a window, all together; the largest changes first.
    """
    shares: dict[str, Share] = {}
    wishes: list[tuple[int, str]] = []
    for name, number in deserved.items():
        bound = bounds[name]
        known = before.get(name, Share(number))
        now = min(max(known.num_pods, min(number, bound.least)), bound.most)
        lower = (*known.lower, number)[-WINDOWS_BEFORE_FALL:] if number < now else ()
        shares[name] = Share(now, lower)
        if number > now:
            wishes.append((number - now, name))
        elif len(lower) == WINDOWS_BEFORE_FALL:
            wishes.append((max(lower) - now, name))
    left = max_moves
    for change, name in sorted(wishes, key=lambda wish: (-abs(wish[0]), wish[1])):
        step = max(-left, min(left, change))
        shares[name] = _moved(shares[name], step)
        left -= abs(step)
    excess = {name: shares[name].num_pods - number for name, number in deserved.items()}
    needed = sum(share.num_pods for share in shares.values()) - total
    for name in sorted(excess, key=lambda name: (-excess[name], name)):
        step = min(excess[name], needed)
        if step <= 0:
            break
        shares[name] = _moved(shares[name], -step)
        needed -= step
    return shares


def _moved(share: Share, step: int) -> Share:
    return Share(share.num_pods + step, share.lower if step <= 0 else ())
