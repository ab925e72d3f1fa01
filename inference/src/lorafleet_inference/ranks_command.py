"""`lorafleet-inference ranks`: a host beside the one that serves, where a model spans several."""

import argparse
import asyncio
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lorafleet_common.errors import ConfigError
from lorafleet_common.logs import set_up_logs
from lorafleet_common.options import add_options, read_values
from lorafleet_contract.names import PUBLIC_PORT
from lorafleet_inference.base_folder import NamedBase, named_base
from lorafleet_inference.config import ServerConfig
from lorafleet_inference.options import RANKS_OPTIONS, default_cache_dir

LWS_LEADER: Final = "LWS_LEADER_ADDRESS"
LWS_INDEX: Final = "LWS_WORKER_INDEX"
"""Variables that LeaderWorkerSet gives to each pod of a group."""

EVERYWHERE: Final = "0.0.0.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksConfig:
    """What `ranks` runs with."""

    base: NamedBase
    """May have to be downloaded yet."""
    leader: str
    leader_port: int
    index: int
    name: str
    host: str
    port: int


def add_parser(commands: Any) -> None:
    """Add the command to the program's."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "ranks",
        help="run the ranks of a further host",
        description="Join a pod that serves a base model on several hosts, and run the ranks of this one. Options of the engine "
        "have to be as there; those of the API are taken, so that both may be started alike, and have nothing to do here.",
        allow_abbrev=False,
    )
    add_options(parser, RANKS_OPTIONS)
    parser.set_defaults(run=run)


def ranks_config(parsed: argparse.Namespace, environment: Mapping[str, str]) -> RanksConfig:
    """Return the configuration of `ranks`.

    Raises:
        ConfigError: an option is missing, bad or unknown.
    """
    values = read_values(RANKS_OPTIONS, parsed, environment)
    own, server = values.of(None), values.of(ServerConfig)
    set_up_logs(own.get("log_level", "info"), own.get("log_format", "text"), package="lorafleet_inference")
    if "model" not in own:
        raise ConfigError("--model", "is required")
    leader = own.get("leader", environment.get(LWS_LEADER))
    if leader is None:
        raise ConfigError("--leader", "is required")
    index = own.get("host_index", environment.get(LWS_INDEX))
    if index is None:
        raise ConfigError("--host-index", "is required")
    base = named_base(values, own.get("cache_dir", default_cache_dir()), drafts=False)
    engine = base.engine
    if not (str(index).isdecimal() and 0 < int(index) < engine.hosts):
        raise ConfigError(
            "--host-index", f"{index} is none of 1 to {engine.hosts - 1}: there are {engine.hosts} --hosts"
        )
    address, port = _address(leader, engine.ranks_port)
    return RanksConfig(
        base=base,
        leader=address,
        leader_port=port,
        index=int(index),
        name=server.get("pod_name") or socket.gethostname(),
        host=server.get("host", EVERYWHERE),
        port=server.get("port", PUBLIC_PORT),
    )


def run(parsed: argparse.Namespace) -> int:
    """Run until the engine that was joined ends; return the exit status."""
    config = ranks_config(parsed, os.environ)
    from lorafleet_inference.server.ranks import serve_ranks  # noqa: PLC0415  --help and bad options answer at once

    return asyncio.run(serve_ranks(config))


def _address(leader: str, port: int) -> tuple[str, int]:
    """Return address and port of ADDRESS, ADDRESS:PORT, or [IPV6]:PORT."""
    address, colon, last = leader.rpartition(":")
    if not colon or (":" in address and not address.endswith("]")):
        return leader.strip("[]"), port
    if not last.isdecimal():
        raise ConfigError("--leader", f"{leader!r} is neither ADDRESS nor ADDRESS:PORT")
    return address.strip("[]"), int(last)
