"""What a cluster's name and number decide: addresses, devices, folders, cgroup. Pure, except for the table of numbers in use."""

import contextlib
import fcntl
import ipaddress
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from localcluster.errors import LocalClusterError
from localcluster.paths import STATE_ROOT

WHOLE_RANGE = IPv4Network("198.18.0.0/15")
"""Reserved for benchmarks of network devices: no office network uses it."""
CLUSTER_PREFIX = 20
MAX_CLUSTERS = 2 ** (CLUSTER_PREFIX - WHOLE_RANGE.prefixlen)
NAME_PATTERN = re.compile(r"[a-z]([a-z0-9-]{0,18}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that keeps two clusters on one machine apart.

    `number` picks a /20 of `WHOLE_RANGE`: its first /30 links the machine and the node, Services lie in its second
    /22, pods in its upper /21.
    """

    name: str
    number: int
    state_root: Path = STATE_ROOT

    def __post_init__(self) -> None:
        check_name(self.name)
        assert 0 <= self.number < MAX_CLUSTERS

    @property
    def network(self) -> IPv4Network:
        """All addresses of the cluster; the machine has one route for it."""
        size = 2 ** (32 - CLUSTER_PREFIX)
        return IPv4Network((int(WHOLE_RANGE.network_address) + self.number * size, CLUSTER_PREFIX))

    @property
    def host_address(self) -> IPv4Address:
        """The machine's end of the link."""
        return self.network.network_address + 1

    @property
    def node_address(self) -> IPv4Address:
        """The node's end of the link; the API server and DNS listen here."""
        return self.network.network_address + 2

    @property
    def services(self) -> IPv4Network:
        """ClusterIPs."""
        return IPv4Network((int(self.network.network_address) + 4 * 256, 22))

    @property
    def pods(self) -> IPv4Network:
        """Pod addresses."""
        return IPv4Network((int(self.network.network_address) + 8 * 256, 21))

    @property
    def api_service_address(self) -> IPv4Address:
        """ClusterIP of the Service `kubernetes`."""
        return self.services.network_address + 1

    @property
    def api_url(self) -> str:
        """The API server as the machine and the pods reach it."""
        return f"https://{self.node_address}:6443"

    @property
    def host_device(self) -> str:
        """Name of the only network device that the machine sees."""
        return f"lorafleet{self.number}"

    @property
    def node_name(self) -> str:
        """Name of the Node object."""
        return f"lorafleet-{self.name}"

    @property
    def cgroup(self) -> str:
        """The cgroup above all pods, relative to each hierarchy's root."""
        return f"lorafleet/{self.name}"

    @property
    def state(self) -> Path:
        """Folder with all that the cluster writes."""
        return self.state_root / "clusters" / self.name

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of the administrator."""
        return self.state / "kubeconfig"

    @property
    def bin_folder(self) -> Path:
        """Folder with kubectl, helm and the components."""
        return self.state / "bin"


def check_name(name: str) -> None:
    """Stop on a name that cannot be part of device, folder and node names.

    Raises:
        LocalClusterError: it cannot.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise LocalClusterError(
            f"{name!r} cannot name a cluster: use up to 20 lower-case letters, digits and dashes, a letter first."
        )


def choose_number(taken: Iterable[int], foreign: Iterable[IPv4Network]) -> int:
    """Return the lowest number that no cluster has and whose addresses no foreign route of the machine touches.

    Raises:
        LocalClusterError: there is none.
    """
    used, others = set(taken), list(foreign)
    for number in range(MAX_CLUSTERS):
        network = Layout("free", number).network
        if number not in used and not any(network.overlaps(other) for other in others):
            return number
    raise LocalClusterError(
        f"No addresses are free in {WHOLE_RANGE}: {len(used)} clusters use it and the machine has routes of its own there"
        " (`ip route` lists them); take a cluster down with `python3 tools/localcluster down --name NAME`."
    )


class Allocations:
    """The table of clusters and their numbers, shared by all processes of the machine.

    `shared_folders` exist while any cluster does: every node covers them with its own, and would lose those if they went.
    """

    def __init__(self, root: Path = STATE_ROOT, shared_folders: Iterable[Path] = ()) -> None:
        self._root = root
        self._shared_folders = tuple(shared_folders)
        self._file = root / "allocations.json"

    def find(self, name: str) -> Layout | None:
        """Return the layout of a cluster that exists, running or not."""
        number = self._read().get(name)
        return None if number is None else Layout(name, number, self._root)

    def names(self) -> list[str]:
        """Return the names of all clusters that exist."""
        return sorted(self._read())

    def claim(self, name: str, foreign: Iterable[IPv4Network]) -> Layout:
        """Return the layout of the cluster; a new name gets a number that stays its own until `release`.

        Raises:
            LocalClusterError: the name is no name, or no addresses are free.
        """
        check_name(name)
        with self._locked():
            table = self._read()
            if name not in table:
                table[name] = choose_number(table.values(), foreign)
                self._write(table)
            for folder in self._shared_folders:
                folder.mkdir(parents=True, exist_ok=True)
            return Layout(name, table[name], self._root)

    def release(self, name: str) -> None:
        """Give the number back; after the last one the table and the shared folders are gone."""
        if not self._root.exists():
            return
        with self._locked():
            table = self._read()
            table.pop(name, None)
            if table:
                self._write(table)
                return
            self._file.unlink(missing_ok=True)
            for folder in (*self._shared_folders, self._root / "clusters", self._root):
                with contextlib.suppress(OSError):  # what holds something is not ours
                    folder.rmdir()

    def _read(self) -> dict[str, int]:
        try:
            table = json.loads(self._file.read_text())
        except (OSError, ValueError):
            table = {}
        # A cluster's folder carries its number too, so that a lost table is no lost cluster.
        for marker in self._root.glob("clusters/*/number"):
            table.setdefault(marker.parent.name, int(marker.read_text()))
        return {str(name): int(number) for name, number in table.items()}

    def _write(self, table: dict[str, int]) -> None:
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(table, indent=1) + "\n")
        temporary.replace(self._file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        while True:
            self._root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if not _same_folder(descriptor, self._root):
                    continue  # another process removed it while this one waited
                yield
                return
            finally:
                os.close(descriptor)


def _same_folder(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def foreign_networks(routes: Iterable[dict[str, object]], own_devices: Iterable[str]) -> list[IPv4Network]:
    """Return the destinations in `WHOLE_RANGE` that the machine routes elsewhere; `routes` is what `ip -json route` prints."""
    own = set(own_devices)
    found = []
    for route in routes:
        destination = str(route.get("dst", ""))
        if destination == "default" or route.get("dev") in own:
            continue
        try:
            network = ipaddress.IPv4Network(destination)
        except ValueError:
            continue
        if network.prefixlen >= 8 and network.overlaps(WHOLE_RANGE):
            found.append(network)
    return found
