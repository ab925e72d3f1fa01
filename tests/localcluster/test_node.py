"""The supervisor keeps components running in namespaces of its own, and nothing outlives it."""

import json
import os
import signal
import socket
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from localcluster.cgroups import hierarchies
from localcluster.debian import install_missing
from localcluster.errors import LocalClusterError
from localcluster.layout import Layout
from localcluster.machine import Node, Process, children_of, read_process, wait_until
from localcluster.plan import PlannedComponent

LAST_NUMBERS = (30, 31)
"""Far from those that clusters of this machine have."""


@pytest.fixture
def nodes(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root, as the local cluster does")
    install_missing(lambda _: None)
    made = [Layout(f"node-{number}", number, tmp_path) for number in LAST_NUMBERS]
    for layout in made:
        (layout.state / "logs").mkdir(parents=True)
        component = PlannedComponent(
            "sleeper", ["/bin/sleep", "1000"], {}, None, str(layout.state / "logs" / "sleeper.log")
        )
        plan = {"empty_folders": ["/run"], "bound": {}, "components": [asdict(component)]}
        (layout.state / "plan.json").write_text(json.dumps(plan))
    yield made
    for layout in made:
        Node(layout).stop()


def sleeper_of(layout):
    """Return the component's process id; while the node is being prepared, its supervisor has other children."""
    supervisor = Node(layout).supervisor()
    children = children_of(supervisor.pid) if supervisor else []
    return next((pid for pid in children if command_of(pid).startswith(b"sleeper")), None)


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.mark.cluster
def test_nodes_side_by_side(nodes):
    for layout in nodes:
        Node(layout).start(layout.state / "plan.json")
    first, second = nodes
    sleepers = [wait_until(lambda layout=layout: sleeper_of(layout), 10) for layout in nodes]
    assert all(sleepers)
    assert Path(f"/sys/class/net/{first.host_device}").exists()
    answer = subprocess.run(
        ["ip", "route", "get", str(second.pods[7])], check=True, capture_output=True, text=True
    ).stdout
    assert f"dev {second.host_device}" in answer
    addresses = subprocess.run(
        Node(first).enter("ip", "-brief", "address"), check=True, capture_output=True, text=True
    ).stdout
    assert f"{first.node_address}/30" in addresses

    for _ in range(20):  # more than the kernel refuses in a second unless told to
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((str(first.services[9]), 80), timeout=0.9)

    os.kill(sleepers[0], signal.SIGKILL)
    assert wait_until(lambda: sleeper_of(first) not in {None, sleepers[0]}, 10), "it was not started again"
    assert sleeper_of(second) == sleepers[1]

    supervisor = Node(second).supervisor()
    os.kill(supervisor.pid, signal.SIGKILL)
    assert wait_until(lambda: read_process(sleepers[1]) is None, 10), "a component outlived the supervisor"
    assert wait_until(lambda: Node(second).supervisor() is None, 10), "it was told to end and has not"
    with pytest.raises(LocalClusterError, match="does not run"):
        Node(second).enter("true")

    Node(first).stop()
    Node(second).stop()
    for layout in nodes:
        assert wait_until(lambda layout=layout: not Path(f"/sys/class/net/{layout.host_device}").exists(), 10)
        assert not any((hierarchy / layout.cgroup).exists() for hierarchy in hierarchies())


def test_a_later_process_with_the_same_id_is_another():
    this = read_process(os.getpid())
    assert this is not None
    assert this.alive()
    assert not Process(this.pid, this.started_ticks - 1).alive()
