"""A program that has imported what pods need, and forks a process for each that `support.forked` asks for: no import is paid twice.

`python -m support.fork_server SOCKET`: one message a process, with its files; when the other end goes, it goes, and all of
its processes with it. It has one thread, and computes nothing: whatever starts threads has to come after a fork.
"""

import atexit
import contextlib
import gc
import importlib
import os
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import msgspec

PRELOADED = (
    "support.forked_programs",
    "lorafleet_inference.server.app",
    "lorafleet_inference.server.allocator",
    "lorafleet_inference.engine.process",
    "lorafleet_inference.model.weights",
    "lorafleet_inference.model.ranks.follower",
    # what they import when a model is loaded
    "accelerate",
    "numba",
    "transformers.masking_utils",
    "transformers.models.llama.modeling_llama",
)
MAX_BYTES, MAX_FILES = 1 << 20, 16
STATUS = 4
"""Bytes of an exit status."""


class Request(msgspec.Struct, frozen=True):
    """A process: `call` is module:function, called with the arguments and the numbers of the files that are its own."""

    call: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    folder: str


class Started(msgspec.Struct, frozen=True):
    """What is answered at once."""

    pid: int


@dataclass(frozen=True, slots=True)
class _Forked:
    """A process, by a file that is readable when it has ended, and whoever waits for its status."""

    pid: int
    ended: int
    control: socket.socket


def call_of(request: Request, files: Sequence[int]) -> int:
    """Be the process that is asked for: its environment, its folder, its function. Returns the exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    module, _, name = request.call.partition(":")
    status: int = getattr(importlib.import_module(module), name)(request.arguments, files)
    return status


def forked_from(connection: socket.socket) -> tuple[Request, list[int]]:
    """Fork for each request; return in each child. The first process never returns."""
    forked: dict[int, _Forked] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not connection:
                    one = forked.pop(key.fd)
                    selector.unregister(key.fd)
                    _tell_end(one)
                    continue
                data, files, _, _ = socket.recv_fds(connection, MAX_BYTES, MAX_FILES)
                if not data:
                    _kill(forked.values())
                    os._exit(0)
                request = msgspec.json.decode(data, type=Request)
                num_threads = len(list(Path("/proc/self/task").iterdir()))
                assert num_threads == 1, f"what was imported has started {num_threads - 1} threads"
                pid = os.fork()
                if pid == 0:
                    for other in forked.values():
                        other.control.close()
                        os.close(other.ended)
                    connection.close()
                    return request, _own_files(files)
                control = socket.socket(fileno=files[0])
                for file in files[1:]:
                    os.close(file)
                with contextlib.suppress(OSError):
                    control.sendall(msgspec.json.encode(Started(pid)) + b"\n")
                ended = os.pidfd_open(pid)
                forked[ended] = _Forked(pid, ended, control)
                selector.register(ended, selectors.EVENT_READ)


def _own_files(files: list[int]) -> list[int]:
    """The first is its parent's, the next two become its output and its errors, the others are its function's."""
    control, output, errors, *own = files
    os.close(control)
    for file, place in ((output, 1), (errors, 2)):
        os.dup2(file, place)
        os.close(file)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return own


def _tell_end(one: _Forked) -> None:
    _, status = os.waitpid(one.pid, 0)
    os.close(one.ended)
    with contextlib.suppress(OSError):
        one.control.sendall(os.waitstatus_to_exitcode(status).to_bytes(STATUS, "big", signed=True))
    one.control.close()


def _kill(forked: Iterable[_Forked]) -> None:
    for one in forked:
        os.kill(one.pid, signal.SIGKILL)
        os.waitpid(one.pid, 0)


def main() -> NoReturn:
    """Import, and be the server; in its children, what was asked for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # pages with it stay shared
    request, files = forked_from(socket.socket(fileno=int(sys.argv[1])))
    try:
        status = call_of(request, files)
    except SystemExit as error:  # as the interpreter does
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        status = 1
    _end(status)


def _end(status: int) -> NoReturn:
    """End as the interpreter does, but for freeing all that was imported."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
