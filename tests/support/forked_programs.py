"""What forked processes run: the product's own entries, as its programs do."""

import ctypes
import os
import runpy
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from support.awaited import AwaitedProcess

from lorafleet_inference import cli
from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine.engine_program import EngineProcess

ENGINE_NAME = b"engine.process"
"""Of a forked engine, as its command line is that of the server."""
_PR_SET_NAME = 15
_MAX_MESSAGE_BYTES = 1 << 20


class _Handed(msgspec.Struct, frozen=True):
    """What an engine is started with, beside its socket."""

    start: str
    environment: dict[str, str]


def pod(arguments: Sequence[str], _: Sequence[int]) -> int:
    """`lorafleet-inference ARGUMENTS`, its engine a child that waits from the start, before there are threads."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        return _wait_and_run(theirs)
    theirs.close()

    async def run(_: EngineConfig, start: bytes, number: int) -> EngineProcess:
        handed = _Handed(start.decode(), dict(os.environ))
        socket.send_fds(ours, [msgspec.json.encode(handed)], [number])
        return AwaitedProcess(pid, os.pidfd_open(pid), lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))  # as `lorafleet_inference.__main__` does
    sys.argv = ["lorafleet-inference", *arguments]
    return cli.main(arguments, run)


def engine(arguments: Sequence[str], files: Sequence[int]) -> int:
    """`python -m lorafleet_inference.engine.process SOCKET`; the argument is what its standard input gives."""
    return _run(arguments[0], files[0])


def rank(_: Sequence[str], files: Sequence[int]) -> int:
    """A rank beside the first; the files are its pipes."""
    from lorafleet_inference.model.ranks.follower import run_rank
    from lorafleet_inference.model.ranks.messages import Pipes, pipe

    pipes = Pipes(*(pipe(socket.socket(fileno=file)) for file in files))
    return run_rank(pipes.steps.recv(), pipes)


def script(arguments: Sequence[str], _: Sequence[int]) -> int:
    """`python SCRIPT ARGUMENTS`."""
    sys.argv = list(arguments)
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")
    return 0


def _wait_and_run(connection: socket.socket) -> int:
    data, files, _, _ = socket.recv_fds(connection, _MAX_MESSAGE_BYTES, 1)
    connection.close()
    if not data:  # a pod without an engine
        return 0
    handed = msgspec.json.decode(data, type=_Handed)
    os.environ.clear()
    os.environ.update(handed.environment)
    return _run(handed.start, files[0])


def _run(start: str, number: int) -> int:
    from lorafleet_inference.engine import process

    ctypes.CDLL(None).prctl(_PR_SET_NAME, ENGINE_NAME, 0, 0, 0)
    given = os.memfd_create("start")
    os.write(given, start.encode())
    os.lseek(given, 0, os.SEEK_SET)
    os.dup2(given, 0)
    os.close(given)
    sys.argv = ["lorafleet_inference.engine.process", str(number)]
    return process.main([str(number)])
