"""`lorafleet-operator run`."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from lorafleet_operator.config import OperatorConfig, read_config
from lorafleet_operator.errors import ConfigError, OperatorError

USAGE = "usage: lorafleet-operator run [OPTION …]      (lorafleet-operator run --help lists the options)\n"
logger = logging.getLogger("lorafleet_operator")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 ended as told, 1 something essential ended, 2 used wrongly."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] != ["run"]:
        wants_help = words in (["--help"], ["-h"])
        (sys.stdout if wants_help else sys.stderr).write(USAGE)
        return 0 if wants_help else 2
    try:
        config = read_config(words[1:], os.environ)
    except ConfigError as error:
        sys.stderr.write(f"lorafleet-operator: {error}\n")
        return 2
    set_up_logs(config)
    from lorafleet_operator.process.run import run  # noqa: PLC0415  --help and bad options answer at once

    try:
        asyncio.run(run(config))
    except OperatorError as error:
        logger.error("ending: %s", error)
        return 1
    return 0


def set_up_logs(config: OperatorConfig) -> None:
    """Log to stderr as the configuration says."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if config.log_format == "json" else text)
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler], force=True)
    for quiet in ("aiohttp.access", "asyncio", "kopf"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
