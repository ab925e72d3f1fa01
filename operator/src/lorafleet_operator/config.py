"""One frozen config object, read once from flags and environment."""

import argparse
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorafleet_operator.errors import ConfigError

PREFIX = "LORAFLEET_"
_NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
"""Kubernetes adds such variables for every Service of the namespace, also for those named lorafleet-…."""
_FOR_OTHERS = frozenset({"LORAFLEET_URL", "LORAFLEET_REGISTRY", "LORAFLEET_TAG"})
"""Variables of the project that a user's shell may hold; so is LORAFLEET_TEST_*."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorConfig:
    """What `lorafleet-operator run` runs with."""

    engine_image: str
    namespace: str
    pod_name: str
    watch_namespaces: tuple[str, ...] = ()
    """Empty: all."""
    key_secret: str = "lorafleet-operator-key"
    lease: str = "lorafleet-operator"
    http_port: int = 8080
    resync_seconds: float = 30.0
    workers: int = 4
    log_level: str = "info"
    log_format: str = "text"


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its flag, its variable, how it is read and what it means."""

    name: str
    metavar: str
    help: str
    parse: Callable[[str], Any]

    @property
    def flag(self) -> str:
        """As written on a command line."""
        return f"--{self.name}"

    @property
    def field(self) -> str:
        """Field of OperatorConfig."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + self.field.upper()


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text.strip()


def _name(text: str) -> str:
    if not _NAME.match(text):
        raise ValueError(f"{text!r} is no name of a Kubernetes object")
    return text


def _names(text: str) -> tuple[str, ...]:
    return tuple(_name(part.strip()) for part in text.split(",") if part.strip())


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


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number of seconds") from None
    if not 1 <= seconds <= 3600:
        raise ValueError(f"{seconds} is not between 1 and 3600")
    return seconds


def _one_of(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"{text!r} is none of {', '.join(values)}")
        return text

    return parse


OPTIONS: tuple[Option, ...] = (
    Option("engine-image", "IMAGE", "image of engine pods whose BaseModelDeployment names none", _text),
    Option("namespace", "NAME", "namespace of the operator", _name),
    Option("pod-name", "NAME", "who holds the Lease (default: the host name)", _name),
    Option("watch-namespaces", "NAMES", "namespaces to serve, separated by commas (default: all)", _names),
    Option("key-secret", "NAME", "Secret with the key of admin tokens", _name),
    Option("lease", "NAME", "Lease that one of several operators holds", _name),
    Option("http-port", "PORT", "port of /healthz, /readyz and /metrics", _number(0, 65535)),
    Option("resync-seconds", "SECONDS", "how often everything is listed and compared", _seconds),
    Option("workers", "NUMBER", "base models that are reconciled at the same time", _number(1, 64)),
    Option("log-level", "LEVEL", "debug, info, warning or error", _one_of("debug", "info", "warning", "error")),
    Option("log-format", "FORMAT", "text or json", _one_of("text", "json")),
)


def read_config(arguments: Sequence[str], environment: Mapping[str, str]) -> OperatorConfig:
    """Return the configuration of `run`; flags win over variables.

    Raises:
        ConfigError: an option is missing, unknown or bad.
        SystemExit: help was asked for, or an unknown flag given.
    """
    parser = argparse.ArgumentParser(prog="lorafleet-operator run", allow_abbrev=False)
    for option in OPTIONS:
        parser.add_argument(option.flag, metavar=option.metavar, help=f"{option.help} [{option.variable}]")
    parsed = vars(parser.parse_args(arguments))
    _refuse_unknown(environment)
    values: dict[str, Any] = {"pod_name": socket.gethostname().lower()}
    for option in OPTIONS:
        source, text = option.flag, parsed[option.field]
        if text is None:
            source, text = option.variable, environment.get(option.variable)
        if text is None:
            continue
        try:
            values[option.field] = option.parse(text)
        except ValueError as error:
            raise ConfigError(source, str(error)) from None
    for required in ("engine_image", "namespace"):
        if required not in values:
            raise ConfigError(f"--{required.replace('_', '-')}", "is required")
    return OperatorConfig(**values)


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = {option.variable for option in OPTIONS} | _FOR_OTHERS
    for name in environment:
        if name.startswith(PREFIX) and name not in known:
            if name.startswith("LORAFLEET_TEST_") or _SERVICE_LINK.search(name):
                continue
            raise ConfigError(name, "is no option of the operator")
