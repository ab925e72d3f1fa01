"""Hosts of a model that spans several, on this one: `lorafleet-inference ranks` as a program, over the loopback."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.pod import END_SECONDS, SOURCES

SECRET = "of the tests"
ON_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"}


def free_port() -> int:
    """Return a port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class RanksHost:
    """A running program."""

    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def logs(self) -> str:
        """What it has written so far."""
        return self.log_file.read_text(errors="replace")


@contextmanager
def ranks_host(model: Path, leader_port: int, *options: str, secret: str = SECRET) -> Iterator[RanksHost]:
    """Run the second of two hosts; it is ended after use, if it has not."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LORAFLEET_")}
    own = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(SOURCES),
        "LORAFLEET_RANKS_SECRET": secret,
        **ON_LOOPBACK,
    }
    as_lws = {"LWS_LEADER_ADDRESS": "127.0.0.1", "LWS_WORKER_INDEX": "1"}
    with tempfile.TemporaryDirectory(prefix="lorafleet-host-") as folder:
        log_file = Path(folder) / "log"
        command = [
            sys.executable,
            "-m",
            "lorafleet_inference",
            "ranks",
            f"--model={model}",
            f"--ranks-port={leader_port}",
        ]
        command += [f"--cache-dir={folder}", "--host=127.0.0.1", "--port=0", "--hosts=2", "--tensor-parallel-size=2"]
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [*command, *options], stdout=log, stderr=subprocess.STDOUT, env={**clean, **own, **as_lws}
            )
        host = RanksHost(process, log_file)
        try:
            yield host
        except BaseException:
            print(f"--- log of the host\n{host.logs}\n---", file=sys.stderr)
            raise
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(END_SECONDS)
