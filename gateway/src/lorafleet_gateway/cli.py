"""`lorafleet-gateway serve` and `lorafleet-gateway keys new`."""

import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from lorafleet_common.errors import ConfigError
from lorafleet_common.kube.errors import KubeError
from lorafleet_common.logs import set_up_logs
from lorafleet_gateway import keys_command
from lorafleet_gateway.config import read_config
from lorafleet_gateway.errors import GatewayError

USAGE = """\
usage: lorafleet-gateway serve [OPTION …]      (lorafleet-gateway serve --help lists the options)
       lorafleet-gateway keys new NAME         (makes a key for --keys-file)
"""
logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 ended as told, 1 something essential ended, 2 used wrongly."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] not in (["serve"], ["keys"]):
        wants_help = words in (["--help"], ["-h"])
        (sys.stdout if wants_help else sys.stderr).write(USAGE)
        return 0 if wants_help else 2
    try:
        if words[0] == "keys":
            return keys_command.main(words[1:])
        config = read_config(words[1:], os.environ)
    except ConfigError as error:
        sys.stderr.write(f"lorafleet-gateway: {error}\n")
        return 2
    set_up_logs(config.log_level, config.log_format, package="lorafleet_gateway")
    from lorafleet_gateway.process.run import serve  # noqa: PLC0415  --help and bad options answer at once

    try:
        asyncio.run(serve(config))
    except ConfigError as error:
        sys.stderr.write(f"lorafleet-gateway: {error}\n")
        return 2
    except (GatewayError, KubeError) as error:
        logger.error("ending: %s", error)
        return 1
    return 0
