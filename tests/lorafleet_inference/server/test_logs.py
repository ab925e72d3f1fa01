"""Logs are one JSON object a line where that is asked for."""

import json
import logging
import subprocess
import sys

from lorafleet_common.logs import JsonFormatter

PROGRAM = """
import logging
from lorafleet_common.logs import set_up_logs
set_up_logs("info", "json", package="lorafleet_inference")
logging.getLogger("lorafleet_inference.x").info("ready %d", 3)
logging.getLogger("lorafleet_inference.x").debug("hidden")
logging.getLogger("library").info("hidden")
logging.getLogger("library").warning("shown")
"""


def test_lines_are_json_and_levels_hold() -> None:
    path = [entry for entry in sys.path if entry.endswith("src")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={"PYTHONPATH": ":".join(path)}, capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["level"], line["message"]) for line in lines] == [("info", "ready 3"), ("warning", "shown")]


def test_exceptions_stay_on_their_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.getLogger("x").makeRecord("x", logging.ERROR, "f", 1, "failed", (), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert "ValueError" in json.loads(line)["exception"]
