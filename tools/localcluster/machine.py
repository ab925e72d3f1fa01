"""What a cluster puts on the machine: a process with namespaces of its own, a network device, a cgroup; and how each goes."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import TypeVar

from localcluster.cgroups import make_cgroups, remove_cgroups
from localcluster.errors import LocalClusterError
from localcluster.layout import Allocations, Layout, foreign_networks
from localcluster.paths import PACKAGE
from localcluster.progress import run

T = TypeVar("T")
NAMESPACES = ("--mount", "--net", "--pid")


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the machine, told from later ones with the same id by its start (clock ticks since boot)."""

    pid: int
    started_ticks: int

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        found = read_process(self.pid)
        return found is not None and found.started_ticks == self.started_ticks


def read_process(pid: int) -> Process | None:
    """Return the process with that id, unless it has ended."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else Process(pid, int(fields[19]))


def children_of(pid: int) -> list[int]:
    """Return the ids of a process's children."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [child for child in pids if (fields := _stat(child)) is not None and int(fields[1]) == pid]


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


class Node:
    """The running part of a cluster: the supervisor and all that ends with it."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._record = layout.state / "supervisor.json"
        self.logs = layout.state / "logs"

    def supervisor(self) -> Process | None:
        """Return the supervisor if it runs."""
        try:
            recorded = json.loads(self._record.read_text())
            process = Process(int(recorded["pid"]), int(recorded["started_ticks"]))
        except (OSError, ValueError, KeyError):
            return None
        return process if process.alive() else None

    def start(self, plan: Path) -> None:
        """Start the supervisor in new namespaces, link its network to the machine's, and let it go.

        Raises:
            LocalClusterError: the machine refuses namespaces or devices.
        """
        self.stop()
        make_cgroups(self._layout.cgroup)
        log = self.logs / "supervisor.log"
        with log.open("a") as output:
            parent = subprocess.Popen(
                [
                    *(
                        "unshare",
                        *NAMESPACES,
                        "--ipc",
                        "--fork",
                        "--kill-child",
                        "--mount-proc",
                        "--propagation",
                        "slave",
                    ),
                    *(sys.executable, "-I", str(PACKAGE / "supervisor.py"), str(plan)),
                ],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
            )
        assert parent.stdin is not None
        supervisor = None
        try:
            pid = wait_until(lambda: next(iter(children_of(parent.pid)), None), 10, lambda: parent.poll() is not None)
            supervisor = None if pid is None else read_process(pid)
            if supervisor is None:
                raise LocalClusterError(
                    f"The node could not get namespaces of its own: {log.read_text().strip()};"
                    " this needs a real root, or a privileged container."
                )
            record = {"pid": supervisor.pid, "started_ticks": supervisor.started_ticks}
            self._record.write_text(json.dumps(record))
            self._link(supervisor.pid)
            parent.stdin.write(b"go\n")
            parent.stdin.close()
        except BaseException:
            parent.kill()
            self.stop()
            raise
        parent.returncode = 0  # it outlives this program: no ResourceWarning

    def stop(self) -> None:
        """End the supervisor, wait until all its processes are gone, and remove device and cgroups."""
        supervisor = self.supervisor()
        if supervisor is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(supervisor.pid, signal.SIGKILL)
            if not wait_until(lambda: not supervisor.alive(), 30):
                raise LocalClusterError(
                    f"Process {supervisor.pid} does not end; look at it with `cat /proc/{supervisor.pid}/stack`."
                )
        self._record.unlink(missing_ok=True)
        if Path(f"/sys/class/net/{self._layout.host_device}").exists():
            with contextlib.suppress(LocalClusterError):  # it goes with its other end
                run(["ip", "link", "delete", self._layout.host_device])
        remove_cgroups(self._layout.cgroup)

    def enter(self, *command: str | Path) -> list[str]:
        """Return a command line that runs inside the node.

        Raises:
            LocalClusterError: the node does not run.
        """
        supervisor = self.supervisor()
        if supervisor is None:
            raise LocalClusterError(
                f"Cluster {self._layout.name} does not run; start it with `python3 tools/localcluster up`."
            )
        return ["nsenter", "--target", str(supervisor.pid), *NAMESPACES, "--root", "--", *map(str, command)]

    def resident_bytes(self) -> dict[str, int]:
        """Return the resident memory of each component that runs."""
        supervisor = self.supervisor()
        if supervisor is None:
            return {}
        found = {}
        for pid in children_of(supervisor.pid):
            with contextlib.suppress(OSError, StopIteration):
                name = Path(os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0])).name
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                found[name] = int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024
        return found

    def _link(self, pid: int) -> None:
        """Make the link between machine and node, and the machine's one route to the cluster."""
        layout = self._layout
        enter = ["nsenter", "--target", str(pid), "--net"]
        inside = [*enter, "ip"]
        node, services = str(layout.node_address), str(layout.services)
        filtering = [*enter, "iptables", "-w", "-A"]
        refusal = ["-d", services, "-j", "REJECT"]
        for command in (
            ["ip", "link", "add", layout.host_device, "type", "veth", "peer", "name", "eth0", "netns", str(pid)],
            ["ip", "address", "add", f"{layout.host_address}/30", "dev", layout.host_device],
            ["ip", "link", "set", layout.host_device, "up"],
            [*inside, "link", "set", "lo", "up"],
            [*inside, "address", "add", f"{node}/30", "dev", "eth0"],
            [*inside, "link", "set", "eth0", "up"],
            # Processes of the node itself reach ClusterIPs only when a route exists before the packet filter rewrites them.
            [*inside, "route", "add", services, "via", str(layout.host_address)],
            # What kube-proxy has not rewritten by then is refused; else a connection made too early would hang, not fail.
            [*filtering, "FORWARD", *refusal],
            [*filtering, "OUTPUT", *refusal],
            ["ip", "route", "add", str(layout.network), "via", node, "src", str(layout.host_address)],
        ):
            run(command)


def wait_until(look: Callable[[], T], timeout_seconds: float, give_up: Callable[[], bool] = lambda: False) -> T | None:
    """Return the first true result of `look`, or None after the time or when `give_up` says so."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        if result := look():
            return result
        if time.monotonic() > deadline or give_up():
            return None
        time.sleep(0.02)


def foreign_routes(allocations: Allocations) -> list[IPv4Network]:
    """Return what the machine itself routes in the range that clusters use."""
    own = [layout.host_device for name in allocations.names() if (layout := allocations.find(name))]
    return foreign_networks(json.loads(run(["ip", "-4", "-json", "route", "show", "table", "all"]) or "[]"), own)


@contextlib.contextmanager
def only_one(name: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Keep other processes of the machine from changing that cluster meanwhile; calls `waiting` once if another does.

    A name in the kernel, not a file: it goes with its holder and leaves nothing behind.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as holder:
        announced = False
        while True:
            try:
                holder.bind(f"\0lorafleet-cluster-{name}")
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            if not announced:
                waiting()
                announced = True
            time.sleep(0.1)
        yield
