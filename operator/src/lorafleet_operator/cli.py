"""`lorafleet-operator run` and `lorafleet-operator token`."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from lorafleet_common.errors import ConfigError
from lorafleet_common.kube.errors import KubeError
from lorafleet_common.logs import set_up_logs
from lorafleet_operator.config import read_config
from lorafleet_operator.errors import OperatorError

USAGE = """usage: lorafleet-operator run [OPTION …]                (lorafleet-operator run --help lists the options)
       lorafleet-operator token NAMESPACE/NAME [OPTION …]   prints the admin token of a BaseModelDeployment
"""
logger = logging.getLogger("lorafleet_operator")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 ended as told, 1 something essential ended, 2 used wrongly."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["token"]:
        return _token(words[1:])
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


def _token(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="lorafleet-operator token", allow_abbrev=False)
    parser.add_argument("base", metavar="NAMESPACE/NAME", help="the BaseModelDeployment")
    parser.add_argument("--namespace", default=os.environ.get("LORAFLEET_NAMESPACE"), help="namespace of the operator")
    parser.add_argument("--key-secret", default="lorafleet-operator-key", help="Secret with its key [%(default)s]")
    parsed = parser.parse_args(arguments)
    if parsed.namespace is None or parsed.base.count("/") != 1:
        sys.stderr.write("lorafleet-operator: token needs NAMESPACE/NAME and --namespace\n")
        return 2
    from lorafleet_operator.process.token import token_of  # noqa: PLC0415  as in main

    try:
        token = asyncio.run(token_of(parsed.base, namespace=parsed.namespace, key_secret=parsed.key_secret))
    except (OperatorError, KubeError, ConfigError) as error:
        sys.stderr.write(f"lorafleet-operator: {error}\n")
        return 1
    sys.stdout.write(f"{token}\n")
    return 0
