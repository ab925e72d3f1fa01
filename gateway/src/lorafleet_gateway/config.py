"""One frozen config object; every option once, with flag, environment variable, default and meaning."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorafleet_common.errors import ConfigError
from lorafleet_common.logs import LogFormat
from lorafleet_common.options import (
    LOG_LEVELS,
    Option,
    add_options,
    boolean,
    num_bytes,
    number,
    object_names,
    one_of,
    read_values,
    seconds,
)
from lorafleet_common.options import describe as described
from lorafleet_contract.names import PUBLIC_PORT

METRICS_PORT = 8002


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """What `lorafleet-gateway serve` runs with."""

    host: str = "0.0.0.0"
    port: int = PUBLIC_PORT
    metrics_port: int = METRICS_PORT
    watch_namespaces: tuple[str, ...] = ()
    """Empty: all."""
    max_body_bytes: int = 32 << 20
    max_held_bytes: int = 256 << 20
    max_in_flight: int = 4096
    max_connections: int = 8192
    max_attempts: int = 3
    retry_seconds: float = 30.0
    connect_timeout_seconds: float = 2.0
    idle_timeout_seconds: float = 600.0
    keys_file: Path | None = None
    """Whose keys are asked for; None: nobody is asked."""
    forward_authorization: bool = False
    """Whether pods see the key of a request."""
    any_revision: bool = False
    """Whether clients may pin revisions that no status shows."""
    spread_keys: bool = False
    """Whether requests of one key that name no session go to several revisions while these share the traffic."""
    client_timeout_seconds: float = 120.0
    drain_grace_seconds: float = 5.0
    drain_timeout_seconds: float = 60.0
    log_level: str = "info"
    log_format: LogFormat = "text"


C = GatewayConfig
OPTIONS: tuple[Option, ...] = (
    Option("host", "Address to listen on.", str, "ADDRESS", C, "host"),
    Option("port", "Port to listen on; 0 takes a free one.", number(0, 65535), "PORT", C, "port"),
    Option("metrics-port", "Port of /metrics and /v1/evidence; 0 takes a free one.", number(0, 65535), "PORT", C, "metrics_port"),
    Option("watch-namespaces", "Namespaces to serve, separated by commas.",
           object_names, "NAMES", C, "watch_namespaces", "all"),
    Option("max-body", "Largest request body.", num_bytes, "QUANTITY", C, "max_body_bytes"),
    Option("max-held-bodies", "Request bodies held in memory; more are answered 429, those of one model from four fifths of it on.",
           num_bytes, "QUANTITY", C, "max_held_bytes"),
    Option("max-in-flight", "Requests answered at the same time; more are answered 429, those of one model from four fifths of them on.",
           number(1, 1 << 20), "NUMBER", C, "max_in_flight"),
    Option("max-connections", "Connections of clients; one more closes the one that has waited for its client the longest.",
           number(1, 1 << 20), "NUMBER", C, "max_connections"),
    Option("max-attempts", "Pods that one request is offered to.", number(1, 16), "NUMBER", C, "max_attempts"),
    Option("retry-seconds", "How long after its arrival a request may be offered to another pod.",
           seconds(0, 3600), "SECONDS", C, "retry_seconds"),
    Option("connect-timeout-seconds", "How long a connection to a pod may take.",
           seconds(0.01, 60), "SECONDS", C, "connect_timeout_seconds"),
    Option("idle-timeout-seconds", "How long a pod may send nothing before its request is given up.",
           seconds(0.1, 86400), "SECONDS", C, "idle_timeout_seconds"),
    Option("keys-file", "File of hashed keys: requests need one of them. It is read again when it changes.",
           Path, "FILE", C, "keys_file", "no keys are asked for"),
    Option("forward-authorization", "Pass the header Authorization on to pods, for those that ask for keys too.",
           boolean, "", C, "forward_authorization", is_flag=True),
    Option("any-revision", "Let clients pin any revision that a pod has, not only those that `status` shows as served.",
           boolean, "", C, "any_revision", is_flag=True),
    Option("spread-keys", "While revisions share an adapter's traffic, draw one for each request that names no session, not for each key.",
           boolean, "", C, "spread_keys", is_flag=True),
    Option("client-timeout-seconds", "How long a client may take for the head of a request, and may read nothing of its answer.",
           seconds(0.1, 86400), "SECONDS", C, "client_timeout_seconds"),
    Option("drain-grace-seconds", "How long new requests are still answered after SIGTERM.",
           seconds(0, 3600), "SECONDS", C, "drain_grace_seconds"),
    Option("drain-timeout-seconds", "How long running requests may go on after that.",
           seconds(0, 86400), "SECONDS", C, "drain_timeout_seconds"),
    Option("log-level", "debug, info, warning or error.", one_of(*LOG_LEVELS), "LEVEL", C, "log_level"),
    Option("log-format", "text or json.", one_of("text", "json"), "FORMAT", C, "log_format"),
)  # fmt: skip


def read_config(arguments: Sequence[str], environment: Mapping[str, str]) -> GatewayConfig:
    """Return the configuration of `serve`; flags win over variables.

    Raises:
        ConfigError: an option is unknown or bad; names it as it was written.
        SystemExit: help was asked for, or an unknown flag given.
    """
    parser = argparse.ArgumentParser(prog="lorafleet-gateway serve", allow_abbrev=False)
    add_options(parser, OPTIONS)
    values = read_values(OPTIONS, parser.parse_args(arguments), environment)
    config = GatewayConfig(**values.of(GatewayConfig))
    if config.max_held_bytes < config.max_body_bytes:
        raise ConfigError("--max-held-bodies", "is less than --max-body: the largest body would never be taken")
    return config


def describe() -> str:
    """Return the table of all options in Markdown, for README.md."""
    return described(OPTIONS)
