"""Processes that are forked from a server which has imported what they need, in place of programs that import it each time."""

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.connection import wait as ready
from pathlib import Path

import msgspec
from support.awaited import AwaitedProcess
from support.fork_server import STATUS, Request, Started

from lorafleet_inference.config import EngineConfig
from lorafleet_inference.engine import allocator
from lorafleet_inference.engine.engine_program import EngineProcess

ROOT = Path(__file__).resolve().parents[2]
MAX_SECONDS = 600.0
"""That a process may take that is run to its end."""


class ForkedProcess:
    """A process of the server's, with what is used of a Popen's methods."""

    def __init__(self, args: Sequence[str], control: socket.socket) -> None:
        self.args = list(args)
        self.returncode: int | None = None
        self._is_read = threading.Lock()
        """The status is told once, whoever waits for it; from then on there is the end of the file."""
        with control, control.makefile("rb", buffering=0) as said:
            line = said.readline()
            self._file = os.dup(control.fileno())
        assert line, "the fork server has ended"
        self.pid = msgspec.json.decode(line, type=Started).pid

    def __del__(self) -> None:
        os.close(self._file)

    def fileno(self) -> int:
        """Return the number of a file that is readable from its end on."""
        return self._file

    def poll(self) -> int | None:
        """Return its status if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its status, negative for a signal."""
        if self.returncode is None and not ready([self._file], timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        with self._is_read:
            if self.returncode is None:
                status = os.read(self._file, STATUS)
                assert status, "the fork server has ended"
                self.returncode = int.from_bytes(status, "big", signed=True)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _Server:
    """The server, as long as this process lives."""

    def __init__(self) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("LORAFLEET_")}
        sources = [str(ROOT / part / "src") for part in ("contract", "common", "inference")]
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sources, str(ROOT / "tests")])}
        own["HF_HUB_DOWNLOAD_TIMEOUT"] = "300"  # read at the import: a file that a test holds up is not asked for again
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "support.fork_server", str(theirs.fileno())],
                env=allocator.with_settings({**clean, **own}, "cpu"),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._connection = ours
        self._asking = threading.Lock()
        atexit.register(self._end)

    def ask(self, request: Request, files: Sequence[int]) -> None:
        with self._asking:
            socket.send_fds(self._connection, [msgspec.json.encode(request)], files)

    def _end(self) -> None:
        self._connection.close()
        self._process.wait()


@cache
def _server() -> _Server:
    return _Server()


def fork(
    call: str,
    arguments: Sequence[str],
    *,
    output: int = 1,
    errors: int = 2,
    files: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> ForkedProcess:
    """Start a process that calls module:function with the arguments and copies of the files."""
    ours, theirs = socket.socketpair()
    with theirs:
        request = Request(
            call, tuple(arguments), dict(os.environ if environment is None else environment), str(Path.cwd())
        )
        _server().ask(request, [theirs.fileno(), output, errors, *files])
    return ForkedProcess([call, *arguments], ours)


def run_forked(
    call: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a process that calls module:function with the arguments to its end."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = fork(call, arguments, output=output.fileno(), errors=errors.fileno(), environment=environment)
        status = process.wait(MAX_SECONDS)
        written = []
        for file in (output, errors):
            file.seek(0)
            written.append(file.read().decode())
    return subprocess.CompletedProcess(process.args, status, *written)


async def forked_engine(_: EngineConfig, start: bytes, number: int) -> EngineProcess:
    """Run the engine in a forked process; for EngineClient's `run`."""
    process = fork("support.forked_programs:engine", [start.decode()], files=[number])
    return AwaitedProcess(process.pid, process.fileno(), process.wait)
