"""Which revision of an adapter answers a request while several share its traffic: `status.traffic`. Pure.

Each revision draws a waiting time from the key, exponential with its weight as the rate, and the shortest wins. So each wins
in proportion to its weight; the same key gets the same answer from every gateway, also from one that was restarted; and a
revision whose weight grows only gains keys, while one whose weight shrinks only loses them. The draws are others for every
set of revisions, so that no session is the canary's of every rollout.
"""

import hashlib
import logging
import math
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field, TypeAdapter, ValidationError

from lorafleet_contract.base import Observed
from lorafleet_contract.sources import Revision

logger = logging.getLogger(__name__)
WHOLE: Final = 100
"""What the weights sum to."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one revision gets."""

    revision: str
    weight: int
    """Percent."""


Traffic = tuple[Share, ...]
"""The revisions that share an adapter's requests, two at least; empty: the stable one gets all."""


class _Entry(Observed):
    revision: Revision
    weight: Annotated[int, Field(ge=0, le=WHOLE)]


class _Named(Observed):
    revision: Revision


_ENTRIES: Final = TypeAdapter(list[_Entry])
_NAMED: Final = TypeAdapter(_Named)


def read_traffic(value: object, *, stable: str | None) -> Traffic:
    """Return who shares the traffic by `status.traffic`; empty where it cannot be read, or was written for another stable revision."""
    if not value:
        return ()
    try:
        shares = tuple(Share(entry.revision, entry.weight) for entry in _ENTRIES.validate_python(value))
    except ValidationError as error:
        logger.warning("status.traffic cannot be read, the stable revision gets all: %s", error)
        return ()
    revisions = {share.revision for share in shares}
    if len(revisions) != len(shares) or sum(share.weight for share in shares) != WHOLE or stable not in revisions:
        logger.warning("status.traffic makes no sense beside stable %s, which gets all: %s", stable, shares)
        return ()
    return shares if len(shares) > 1 else ()


def named_revisions(value: object) -> frozenset[str]:
    """Return the revisions that `status.traffic` names, whatever else is wrong with it."""
    found = set()
    for entry in value if isinstance(value, list) else ():
        try:
            found.add(_NAMED.validate_python(entry).revision)
        except ValidationError:
            continue
    return frozenset(found)


def choose(traffic: Traffic, sticky_key: str) -> str | None:
    """Return the revision that answers whatever has the key; None: the stable one."""
    weighted = [share for share in traffic if share.weight]
    if not weighted:
        return None
    together = "\0".join(sorted(share.revision for share in traffic))
    return min(weighted, key=lambda share: _waiting_time(share, f"{together}\0{sticky_key}")).revision


def _waiting_time(share: Share, seed: str) -> float:
    text = f"{share.revision}\0{seed}".encode(errors="surrogateescape")
    drawn = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest())
    return -math.log((drawn + 1) / (1 << 56)) / share.weight
