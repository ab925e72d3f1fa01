"""What the first rank and another one say to each other, as values.

There are three pipes to each rank, so that steps, loads and signs of life never wait for each other. What a message is as
bytes is in wire.py.
"""

from dataclasses import dataclass
from socket import socket
from typing import Any

import numpy as np
import numpy.typing as npt

from lorafleet_common.logs import LogFormat
from lorafleet_contract.reasons import Reason
from lorafleet_inference.adapters.types import AdapterPlan
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.messages import AdapterKey
from lorafleet_inference.engine.plan import StepPlan
from lorafleet_inference.model.input_batch import ChosenToken
from lorafleet_inference.model.ranks.wire import Channel, Codec

BEAT_SECONDS = 1.0
"""Between two signs of life of a rank."""


@dataclass(frozen=True, slots=True)
class StartRank:
    """What a rank is told before all else."""

    config: EngineConfig
    rank: int
    store: str
    """URL of what the ranks find each other by (`store_of` of group.py)."""
    log_level: str
    log_format: LogFormat


@dataclass(frozen=True, slots=True)
class Pipes:
    """One rank's, or the first rank's ends of them."""

    life: Channel
    """The rank says Reading, Ready, Beat and Ended; it ends when this is closed."""
    steps: Channel
    """Step and Remove, in their order; a rank answers Remove with its key."""
    loads: Channel
    """Settle, Load and Install, one at a time, each answered with Done or Failed."""


# life


@dataclass(frozen=True, slots=True)
class Reading:
    """The rank reads its part of the model."""

    percent: int
    """Of the bytes of the weights, whole."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The rank has its part of the model, and takes steps and loads."""


@dataclass(frozen=True, slots=True)
class Beat:
    """The rank lives."""

    in_step_seconds: float
    """How long it has computed the step that it computes, without waiting for other ranks; 0 where it computes none."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The rank cannot go on, and exits."""

    message: str
    option: str = ""
    """The option that made its start impossible, where one did."""


# steps


@dataclass(frozen=True, slots=True)
class Step:
    """Compute this."""

    plan: StepPlan
    chosen: tuple[ChosenToken, ...]
    """Tokens that the steps before chose."""


@dataclass(frozen=True, slots=True)
class Remove:
    """Forget an adapter of the device."""

    key: AdapterKey


# loads


@dataclass(frozen=True, slots=True)
class Settle:
    """Compare what an adapter repeats of the base with it."""

    number: int
    plan: AdapterPlan


@dataclass(frozen=True, slots=True)
class Load:
    """Read the rank's part of an adapter, and keep it on the host by this number."""

    number: int
    plan: AdapterPlan
    dropped: tuple[int, ...]
    """Those that are not wanted any more."""


@dataclass(frozen=True, slots=True)
class Install:
    """Copy what was read as `loaded` to pages of the device."""

    number: int
    key: AdapterKey
    pages: tuple[int, ...]
    loaded: int


@dataclass(frozen=True, slots=True)
class Partial:
    """While it loads: what the rank has of a sum over all, float32."""

    number: int
    values: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Whole:
    """The sum."""

    number: int
    values: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Abandon:
    """Another rank failed: load it no further, or drop it."""

    number: int


@dataclass(frozen=True, slots=True)
class Done:
    """The rank did it."""

    number: int


@dataclass(frozen=True, slots=True)
class Failed:
    """It did not."""

    number: int
    reason: Reason
    message: str


Answer = Done | Failed | Partial
Message = Any
"""What a pipe gives: one of the above."""

CODEC = Codec(
    (
        StartRank,
        Reading,
        Ready,
        Beat,
        Ended,
        Step,
        Remove,
        AdapterKey,
        Settle,
        Load,
        Install,
        Partial,
        Whole,
        Abandon,
        Done,
        Failed,
    )
)


def pipe(connection: socket) -> Channel:
    """Return the end of a pipe that a connected socket is."""
    return Channel(connection, CODEC)
