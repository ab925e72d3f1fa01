"""`lorafleet-operator run`, and the commands that people and the chart's hooks use."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

from lorafleet_common.errors import ConfigError
from lorafleet_common.kube.errors import KubeError
from lorafleet_common.logs import set_up_logs
from lorafleet_common.options import object_names
from lorafleet_operator.config import read_config
from lorafleet_operator.errors import OperatorError

USAGE = """usage: lorafleet-operator run [OPTION …]                (lorafleet-operator run --help lists the options)
       lorafleet-operator token NAMESPACE/NAME [OPTION …]   prints the admin token of a BaseModelDeployment
       lorafleet-operator remaining [OPTION …]              says what would be left without an operator
       lorafleet-operator clean-up [OPTION …]               removes what the operator has made for itself
"""
logger = logging.getLogger("lorafleet_operator")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 ended as told, 1 something essential ended, 2 used wrongly."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]](words[1:])
    if words[:1] != ["run"]:
        wants_help = words in (["--help"], ["-h"])
        (sys.stdout if wants_help else sys.stderr).write(USAGE)
        return 0 if wants_help else 2
    try:
        config = read_config(words[1:], os.environ)
    except ConfigError as error:
        sys.stderr.write(f"lorafleet-operator: {error}\n")
        return 2
    set_up_logs(config.log_level, config.log_format, package="lorafleet_operator")
    from lorafleet_operator.process.run import run  # noqa: PLC0415  --help and bad options answer at once

    try:
        asyncio.run(run(config))
    except ConfigError as error:
        sys.stderr.write(f"lorafleet-operator: {error}\n")
        return 2
    except (OperatorError, KubeError) as error:
        logger.error("ending: %s", error)
        return 1
    return 0


def _parser(command: str) -> argparse.ArgumentParser:
    """Return a parser with the options that commands for people and for the chart's hooks have in common."""
    parser = argparse.ArgumentParser(prog=f"lorafleet-operator {command}", allow_abbrev=False)
    parser.add_argument("--namespace", default=os.environ.get("LORAFLEET_NAMESPACE"), help="namespace of the operator")
    parser.add_argument("--key-secret", default="lorafleet-operator-key", help="Secret with its key [%(default)s]")
    parser.add_argument("--lease", default="lorafleet-operator", help="its Lease [%(default)s]")
    return parser


def _token(arguments: Sequence[str]) -> int:
    parser = _parser("token")
    parser.add_argument("base", metavar="NAMESPACE/NAME", help="the BaseModelDeployment")
    parsed = parser.parse_args(arguments)
    if parsed.namespace is None or parsed.base.count("/") != 1:
        sys.stderr.write("lorafleet-operator: token needs NAMESPACE/NAME and --namespace\n")
        return 2
    from lorafleet_operator.process.token import token_of  # noqa: PLC0415  as in main

    def work() -> list[str]:
        return [asyncio.run(token_of(parsed.base, namespace=parsed.namespace, key_secret=parsed.key_secret))]

    return _told(work)


def _remaining(arguments: Sequence[str]) -> int:
    parser = _parser("remaining")
    parser.add_argument(
        "--watch-namespaces", type=object_names, default=(), metavar="NAMES", help="those it serves [all]"
    )
    parser.add_argument("--warn", action="store_true", help="exit status 0 although something is left")
    parsed = parser.parse_args(arguments)
    if parsed.namespace is None:
        sys.stderr.write("lorafleet-operator: remaining needs --namespace\n")
        return 2
    from lorafleet_operator.process.removal import run_remaining  # noqa: PLC0415  as in main

    left: list[str] = []

    def work() -> list[str]:
        left.extend(asyncio.run(run_remaining(f"{parsed.namespace}/{parsed.lease}", parsed.watch_namespaces)).lines())
        return left or ["nothing is left"]

    status = _told(work)
    return status if status or parsed.warn or not left else 1


def _clean_up(arguments: Sequence[str]) -> int:
    parser = _parser("clean-up")
    parser.add_argument("--names", default="lorafleet-operator-names", help="ConfigMap with names [%(default)s]")
    parsed = parser.parse_args(arguments)
    if parsed.namespace is None:
        sys.stderr.write("lorafleet-operator: clean-up needs --namespace\n")
        return 2
    from lorafleet_operator.process.removal import run_clean_up  # noqa: PLC0415  as in main

    return _told(lambda: asyncio.run(run_clean_up(parsed.namespace, parsed.lease, parsed.names, parsed.key_secret)))


def _told(work: Callable[[], list[str]]) -> int:
    """Print what comes of some work, or why nothing does."""
    try:
        lines = work()
    except (OperatorError, ConfigError) as error:
        sys.stderr.write(f"lorafleet-operator: {error}\n")
        return 1
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


COMMANDS: Final[dict[str, Callable[[Sequence[str]], int]]] = {
    "token": _token,
    "remaining": _remaining,
    "clean-up": _clean_up,
}
