"""A rank beside the engine process: `python -m lorafleet_inference.engine.rank_process LIFE STEPS LOADS`, started by it.

The numbers are its ends of the pipes of `model/ranks/messages.py`. When the engine process goes, it goes.
"""

import faulthandler
import logging
import signal
import sys
from socket import socket

from lorafleet_common.logs import set_up_logs
from lorafleet_inference.model.ranks.follower import run_rank
from lorafleet_inference.model.ranks.messages import Pipes, StartRank, pipe


def main(arguments: list[str]) -> int:
    """Load this rank's part of the model and serve; return the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the API process decides
    faulthandler.enable()
    life, steps, loads = (pipe(socket(fileno=int(number))) for number in arguments)
    start: StartRank = steps.recv()
    set_up_logs(start.log_level, start.log_format, package="lorafleet_inference")
    name_rank(start.rank)
    return run_rank(start, Pipes(life, steps, loads))


def name_rank(rank: int) -> None:
    """Have each line of the log begin with the rank."""
    made = logging.getLogRecordFactory()

    def record(*args: object, **kwargs: object) -> logging.LogRecord:
        one = made(*args, **kwargs)
        one.msg = f"rank {rank}: {one.msg}"
        return one

    logging.setLogRecordFactory(record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
