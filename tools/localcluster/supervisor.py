"""The first process of a cluster's node: it lives in namespaces of its own, starts the components and starts again what ends.

Run as `python3 supervisor.py PLAN`, where PLAN is a JSON file that `plan.py` writes. It waits for one line on stdin before
it starts anything, because its parent makes the other end of the node's network link. When it ends, by whatever cause, the
kernel ends every process of the node, and the node's mounts, network devices and packet filter rules go with them.
"""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

MAX_OPEN_FILES = 65536
TICK_SECONDS = 0.1
MAX_DELAY_SECONDS = 5.0
SETTLED_SECONDS = 30.0


@dataclass(slots=True)
class Component:
    """A program to keep running. `after`: address and port that must be open before it starts."""

    name: str
    command: list[str]
    environment: dict[str, str]
    after: tuple[str, int] | None
    log: str
    started: float = 0.0
    due: float = 0.0
    delay_seconds: float = field(default=0.25)
    pid: int | None = None

    def may_start(self, now: float) -> bool:
        """Whether it is down, its delay is over and what it needs answers."""
        if self.pid is not None or now < self.due:
            return False
        if self.after is None:
            return True
        try:
            socket.create_connection(self.after, timeout=0.5).close()
        except OSError:
            self.due = now + TICK_SECONDS
            return False
        return True

    def start(self, now: float) -> None:
        """Start it with stdout and stderr appended to its log."""
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.started = now
        self.pid = os.posix_spawn(
            self.command[0],
            [self.name, *self.command[1:]],
            self.environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, self.log, append, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
        )

    def ended(self, now: float, status: int) -> None:
        """Note that it ended; one that keeps ending waits longer each time."""
        self.pid = None
        if now - self.started > SETTLED_SECONDS:
            self.delay_seconds = 0.25
        self.due = now + self.delay_seconds
        self.delay_seconds = min(self.delay_seconds * 2, MAX_DELAY_SECONDS)
        print(f"{time.strftime('%H:%M:%S')} {self.name} ended with status {status}; it starts again", flush=True)


def main() -> None:
    """Prepare the node, wait for the network, keep the components running until told to end."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    soft = MAX_OPEN_FILES if most == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))
    prepare_mounts(plan)
    watched = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    if not sys.stdin.readline():
        return
    prepare_network()
    components = [
        Component(
            name=item["name"],
            command=item["command"],
            environment=item["environment"],
            after=tuple(item["after"]) if item["after"] else None,
            log=item["log"],
        )
        for item in plan["components"]
    ]
    while True:
        now = time.monotonic()
        for component in components:
            if component.may_start(now):
                component.start(now)
        received = signal.sigtimedwait(watched, TICK_SECONDS)
        if received is not None and received.si_signo in {signal.SIGTERM, signal.SIGINT}:
            return
        reap(components)


def reap(components: list[Component]) -> None:
    """Collect what ended: components, and orphans, which come to this process as the first of the node."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        for component in components:
            if component.pid == pid:
                component.ended(time.monotonic(), status)


def prepare_mounts(plan: dict[str, dict[str, str]]) -> None:
    """Cover what components write outside their configuration, and the kernel settings that kubelet changes, with private copies."""
    mount("--make-rshared", "/")
    for path in plan["empty_folders"]:
        mount("-t", "tmpfs", "-o", "mode=755", "lorafleet", path)
    for path, source in plan["bound"].items():
        mount("--bind", source, path)


def prepare_network() -> None:
    """Let the node route for its pods, and refuse every connection that it refuses."""
    settings = Path("/proc/sys/net/ipv4")
    (settings / "ip_forward").write_text("1")
    # The kernel's default is one refusal a second and caller; the connections in between would hang.
    (settings / "icmp_ratelimit").write_text("0")


def mount(*arguments: str) -> None:
    """Run mount."""
    subprocess.run(["mount", *arguments], check=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
