"""One frozen config object, read once from flags and environment."""

import argparse
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from lorafleet_common.errors import ConfigError
from lorafleet_common.logs import LogFormat
from lorafleet_common.options import (
    LOG_LEVELS,
    Option,
    add_options,
    number,
    object_name,
    object_names,
    one_of,
    read_values,
    seconds,
)
from lorafleet_common.options import describe as described

REQUIRED = ("engine_image", "namespace")
_NAME: Final = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_LABEL: Final = re.compile(rf"([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_NAME}={_NAME}")


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
    names: str = "lorafleet-operator-names"
    gateway_selector: str = ""
    """Empty: no gateway is asked."""
    gateway_port: int = 8002
    prometheus_url: str = ""
    """Empty: none is asked."""
    prometheus_token_file: Path | None = None
    prometheus_ca_file: Path | None = None
    http_port: int = 8080
    resync_seconds: float = 30.0
    workers: int = 4
    log_level: str = "info"
    log_format: LogFormat = "text"


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text.strip()


def _labels(text: str) -> str:
    """Read a label selector of equalities; empty selects nothing."""
    terms = [term.strip() for term in text.split(",") if term.strip()]
    for term in terms:
        if not _LABEL.fullmatch(term):
            raise ValueError(f"{term!r} is not LABEL=VALUE")
    return ",".join(terms)


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError(f"{text!r} is no http or https URL without credentials and query")
    return text.rstrip("/")


C = OperatorConfig
OPTIONS: tuple[Option, ...] = (
    Option("engine-image", "Image of engine pods whose BaseModelDeployment names none.", _text, "IMAGE", C, "engine_image",
           "required"),
    Option("namespace", "Namespace of the operator: its Lease and the Secret with its key.", object_name, "NAME", C,
           "namespace", "required"),
    Option("pod-name", "Who holds the Lease; shown in it. A process takes it over at once from one of the same name.",
           object_name, "NAME", C, "pod_name", "the host name"),
    Option("watch-namespaces", "Namespaces to serve, separated by commas.", object_names, "NAMES", C, "watch_namespaces",
           "all"),
    Option("key-secret", "Secret with the key of admin tokens; made at the first start.", object_name, "NAME", C,
           "key_secret"),
    Option("lease", "Lease that one of several operators holds.", object_name, "NAME", C, "lease"),
    Option("names", "ConfigMap in which it keeps the served names of base models, for the time after them.", object_name, "NAME", C,
           "names"),
    Option("gateway-selector", "Labels of the pods of gateways in the operator's namespace, `LABEL=VALUE,…`: they are asked what "
           "came of a revision's requests while a rollout is judged by that, and what they hold for a base that may go "
           "to zero.", _labels, "LABELS", C, "gateway_selector",
           "none is asked"),
    Option("gateway-port", "Their port of `/v1/evidence`.", number(1, 65535), "PORT", C, "gateway_port"),
    Option("prometheus-url", "Base URL of the Prometheus that answers the queries of `rollout.analysis.prometheus`; no other "
           "is ever asked.", _url, "URL", C, "prometheus_url", "none: these queries have no answer"),
    Option("prometheus-token-file", "File with a bearer token for it, read anew for each query.", Path, "FILE", C,
           "prometheus_token_file", "no token"),
    Option("prometheus-ca-file", "Certificates of authorities to be trusted with it.", Path, "FILE", C, "prometheus_ca_file",
           "those of the system"),
    Option("http-port", "Port of `/healthz`, `/readyz` and `/metrics`.", number(0, 65535), "PORT", C, "http_port"),
    Option("resync-seconds", "How often everything is listed and compared, whatever events said.", seconds(1, 3600),
           "SECONDS", C, "resync_seconds"),
    Option("workers", "Base models that are reconciled at the same time.", number(1, 64), "NUMBER", C, "workers"),
    Option("log-level", "debug, info, warning or error.", one_of(*LOG_LEVELS), "LEVEL", C, "log_level"),
    Option("log-format", "text or json.", one_of("text", "json"), "FORMAT", C, "log_format"),
)  # fmt: skip


def read_config(arguments: Sequence[str], environment: Mapping[str, str]) -> OperatorConfig:
    """Return the configuration of `run`; flags win over variables.

    Raises:
        ConfigError: an option is missing, unknown or bad.
        SystemExit: help was asked for, or an unknown flag given.
    """
    parser = argparse.ArgumentParser(prog="lorafleet-operator run", allow_abbrev=False)
    add_options(parser, OPTIONS)
    values = read_values(OPTIONS, parser.parse_args(arguments), environment).of(OperatorConfig)
    for required in REQUIRED:
        if required not in values:
            raise ConfigError(f"--{required.replace('_', '-')}", "is required")
    return OperatorConfig(**{"pod_name": socket.gethostname().lower(), **values})


def describe() -> str:
    """Return the table of all options in Markdown, for README.md."""
    return described(OPTIONS)
