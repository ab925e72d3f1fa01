"""Real servers on free ports of the loopback: a hub, and S3 by rclone."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hubserver.app import Trouble, hub_app
from hubserver.repositories import Repositories

from lorafleet_common.sockets import bind, url_of
from lorafleet_inference.server.listening import http_server

RCLONE = Path(sys.executable).parent / "rclone"
ACCESS_KEY, SECRET_KEY = "AKTEST", "not-so-secret"
START_SECONDS = 60.0
LISTENING = re.compile(r"Starting s3 server on \[(http://[\d.:]+)/\]")


@dataclass(frozen=True)
class ServedHub:
    """A hub whose repositories are the subfolders of `root`, in the organisation `acme`."""

    url: str
    root: Path
    trouble: Trouble


@contextmanager
def serve_hub(root: Path, *, token: str | None = None) -> Iterator[ServedHub]:
    """Serve a hub in a thread."""
    root.mkdir(parents=True, exist_ok=True)
    trouble = Trouble()
    listener = bind("127.0.0.1", 0, option="hub")
    server = http_server(hub_app(Repositories(root, "acme"), token=token, trouble=trouble))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield ServedHub(url_of(listener), root, trouble)
    finally:
        server.should_exit = True
        thread.join(START_SECONDS)
        listener.close()


@dataclass(frozen=True)
class ServedS3:
    """An S3 server whose buckets are the subfolders of `root`."""

    url: str
    root: Path
    process: subprocess.Popen[bytes]


@contextmanager
def serve_s3(root: Path) -> Iterator[ServedS3]:
    """Serve S3 as a process; keys are ACCESS_KEY and SECRET_KEY."""
    root.mkdir(parents=True, exist_ok=True)
    log = root.parent / f"{root.name}-s3.log"
    command = [str(RCLONE), "serve", "s3", "--config", "/dev/null", "--addr", "127.0.0.1:0"]
    command += [
        "--auth-key",
        f"{ACCESS_KEY},{SECRET_KEY}",
        "--vfs-cache-mode",
        "off",
        "--dir-cache-time",
        "0s",
        str(root),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield ServedS3(_wait_listening(process, log), root, process)
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def _wait_listening(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while (found := LISTENING.search(log.read_text())) is None:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"rclone does not listen\n{log.read_text()}"
        time.sleep(0.05)
    return found[1]
