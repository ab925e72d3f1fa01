"""One frozen config object; every option once, with flag, environment variable, default and meaning."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lorafleet_contract.names import PUBLIC_PORT
from lorafleet_contract.resources import quantity_bytes
from lorafleet_gateway.errors import ConfigError

PREFIX = "LORAFLEET_"
_NAME = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_FOR_OTHERS = frozenset({"LORAFLEET_URL", "LORAFLEET_REGISTRY", "LORAFLEET_TAG"})
"""Variables of the project that a user's shell may hold; so is LORAFLEET_TEST_*."""
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
"""Kubernetes adds such variables for every Service of the namespace, also for those named lorafleet-…."""
_LINK_VALUE = re.compile(r"^(tcp|udp|sctp)://")
"""A Service named `lorafleet` makes LORAFLEET_PORT, which is an option too: the value tells them apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """What `lorafleet-gateway serve` runs with."""

    host: str = "0.0.0.0"
    port: int = PUBLIC_PORT
    watch_namespaces: tuple[str, ...] = ()
    """Empty: all."""
    max_body_bytes: int = 32 << 20
    max_held_bytes: int = 256 << 20
    max_in_flight: int = 4096
    max_attempts: int = 3
    retry_seconds: float = 30.0
    connect_timeout_seconds: float = 2.0
    idle_timeout_seconds: float = 600.0
    drain_grace_seconds: float = 5.0
    drain_timeout_seconds: float = 60.0
    log_level: str = "info"
    log_format: str = "text"


@dataclass(frozen=True, slots=True)
class Option:
    """One option: how it is written, read and explained; its default stands in GatewayConfig."""

    name: str
    metavar: str
    help: str
    parse: Callable[[str], Any]
    field: str
    default_text: str | None = None
    """For people, where the default is not a plain value."""

    @property
    def flag(self) -> str:
        """As written on a command line."""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + self.name.upper().replace("-", "_")

    @property
    def shown_default(self) -> str:
        """The default as people write it."""
        if self.default_text is not None:
            return self.default_text
        default = next(field.default for field in fields(GatewayConfig) if field.name == self.field)
        return f"{default:g}" if isinstance(default, float) else str(default)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if not _NAME.match(name):
            raise ValueError(f"{name!r} is no name of a namespace")
    return names


def _number(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise ValueError(f"{text!r} is no whole number") from None
        if not minimum <= number <= maximum:
            raise ValueError(f"{number} is not between {minimum} and {maximum}")
        return number

    return parse


def _seconds(minimum: float, maximum: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            raise ValueError(f"{text!r} is no number of seconds") from None
        if not minimum <= seconds <= maximum:
            raise ValueError(f"{seconds:g} is not between {minimum:g} and {maximum:g}")
        return seconds

    return parse


def _bytes(text: str) -> int:
    number = quantity_bytes(text)
    if number < 1:
        raise ValueError("must be at least 1")
    return number


def _one_of(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"{text!r} is none of {', '.join(values)}")
        return text

    return parse


OPTIONS: tuple[Option, ...] = (
    Option("host", "ADDRESS", "Address to listen on.", str, "host"),
    Option("port", "PORT", "Port to listen on; 0 takes a free one.", _number(0, 65535), "port"),
    Option("watch-namespaces", "NAMES", "Namespaces to serve, separated by commas.", _names, "watch_namespaces", "all"),
    Option("max-body", "QUANTITY", "Largest request body.", _bytes, "max_body_bytes", "32Mi"),
    Option("max-held-bodies", "QUANTITY", "Request bodies held in memory together; beyond that requests are answered 429.",
           _bytes, "max_held_bytes", "256Mi"),
    Option("max-in-flight", "NUMBER", "Requests answered at the same time; more are answered 429.", _number(1, 1 << 20),
           "max_in_flight"),
    Option("max-attempts", "NUMBER", "Pods that one request is offered to.", _number(1, 16), "max_attempts"),
    Option("retry-seconds", "SECONDS", "How long after its arrival a request may be offered to another pod.",
           _seconds(0, 3600), "retry_seconds"),
    Option("connect-timeout-seconds", "SECONDS", "How long a connection to a pod may take.", _seconds(0.01, 60),
           "connect_timeout_seconds"),
    Option("idle-timeout-seconds", "SECONDS", "How long a pod may send nothing before its request is given up.",
           _seconds(0.1, 86400), "idle_timeout_seconds"),
    Option("drain-grace-seconds", "SECONDS", "How long new requests are still answered after SIGTERM.",
           _seconds(0, 3600), "drain_grace_seconds"),
    Option("drain-timeout-seconds", "SECONDS", "How long running requests may go on after that.", _seconds(0, 86400),
           "drain_timeout_seconds"),
    Option("log-level", "LEVEL", "debug, info, warning or error.", _one_of("debug", "info", "warning", "error"),
           "log_level"),
    Option("log-format", "FORMAT", "text or json.", _one_of("text", "json"), "log_format"),
)  # fmt: skip


def read_config(arguments: Sequence[str], environment: Mapping[str, str]) -> GatewayConfig:
    """Return the configuration of `serve`; flags win over variables.

    Raises:
        ConfigError: an option is unknown or bad; names it as it was written.
        SystemExit: help was asked for, or an unknown flag given.
    """
    parser = argparse.ArgumentParser(prog="lorafleet-gateway serve", allow_abbrev=False)
    for option in OPTIONS:
        text = f"{option.help} [{option.variable}; default: {option.shown_default}]"
        parser.add_argument(option.flag, dest=option.field, metavar=option.metavar, help=text.replace("%", "%%"))
    flags = vars(parser.parse_args(arguments))
    _refuse_unknown(environment)
    values: dict[str, Any] = {}
    for option in OPTIONS:
        written, text = option.flag, flags[option.field]
        if text is None:
            written, text = option.variable, environment.get(option.variable, "")
            if not text or _LINK_VALUE.match(text):
                continue
        try:
            values[option.field] = option.parse(text)
        except ValueError as error:
            raise ConfigError(written, str(error)) from None
    config = GatewayConfig(**values)
    if config.max_held_bytes < config.max_body_bytes:
        raise ConfigError("--max-held-bodies", "is less than --max-body: the largest body would never be taken")
    return config


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = {option.variable for option in OPTIONS} | _FOR_OTHERS
    for name in sorted(environment):
        if not name.startswith(PREFIX) or name in known or name.startswith(f"{PREFIX}TEST_"):
            continue
        if not _SERVICE_LINK.search(name):
            raise ConfigError(name, "is no option of the gateway; see --help")


def describe() -> str:
    """Return the table of all options in Markdown, for README.md."""
    lines = ["| option | variable | default | meaning |", "|---|---|---|---|"]
    for option in OPTIONS:
        default = option.shown_default if option.default_text == "all" else f"`{option.shown_default}`"
        lines.append(f"| `{option.flag} {option.metavar}` | `{option.variable}` | {default} | {option.help} |")
    return "\n".join(lines) + "\n"
