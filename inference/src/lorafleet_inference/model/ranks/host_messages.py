"""What the engine process and another host of the model say to each other. Needs no torch.

A host opens all connections, to the port of the engine process; each begins with Hello, when both have shown that they know the
secret. Those of its ranks are the pipes of messages.py; two are the host's own.
"""

from dataclasses import dataclass
from typing import Final, Literal

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.model.ranks.wire import Codec

ALIVE_SECONDS: Final = 1.0
"""Between two signs of life of either side."""
Kind = Literal["control", "files", "life", "steps", "loads"]


@dataclass(frozen=True, slots=True)
class Hello:
    """Whose connection this is, and what for."""

    host: int
    """From 1 on; the engine process is on host 0."""
    kind: Kind
    rank: int | None = None
    """Of a pipe."""


# control


@dataclass(frozen=True, slots=True)
class Join:
    """The host is there."""

    name: str
    """For people."""
    config: EngineConfig
    """What it was started with; `model` is its own folder, `num_threads` what its ranks have together, and the secret is left out."""
    model_print: str
    """What two folders of the same model have in common."""
    folder: str
    """Where it keeps files of adapters."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """It is one of this model: it starts its ranks, whose pipes it opens."""

    first_rank: int
    num_ranks: int


@dataclass(frozen=True, slots=True)
class Refused:
    """It is none of this model."""

    message: str
    option: str


@dataclass(frozen=True, slots=True)
class Alive:
    """Whoever says it lives."""


@dataclass(frozen=True, slots=True)
class RankEnded:
    """The process of a rank has ended, with this status; negative: by a signal."""

    rank: int
    status: int


# files


@dataclass(frozen=True, slots=True)
class Put:
    """Keep a file, whose `size` bytes follow, in the folder of this number; answered with Stored."""

    folder: int
    name: str
    """Relative to it."""
    size: int


@dataclass(frozen=True, slots=True)
class Stored:
    """What came of it."""

    problem: str = ""
    """Why it could not be kept."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Remove a folder; not answered."""

    folder: int


HOST_CODEC = Codec((Hello, Join, Admitted, Refused, Alive, RankEnded, Put, Stored, Drop))
