"""A local cluster from outside: up, down, and what it is like."""

import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from localcluster.api import Api, listens, resolve
from localcluster.artifacts import Artifact
from localcluster.checks import check_machine
from localcluster.configuration import write_configuration
from localcluster.debian import ContainerTools, container_tools, install_missing
from localcluster.dependencies import inference_dependencies, operator_dependencies
from localcluster.errors import LocalClusterError
from localcluster.gobuild import programs
from localcluster.images import PYTHON_IMAGE, pause_image, python_image
from localcluster.layout import Allocations, Layout, check_name
from localcluster.machine import Node, foreign_routes, only_one, wait_until
from localcluster.paths import DEFAULT_NAME, cache_root, env_file
from localcluster.plan import COVERED_FOLDERS, write_plan
from localcluster.progress import Note, Progress, run

READY_SECONDS = 120
REPAIR_SECONDS = 30
OWN_LINES = ("export PATH=", "export KUBECONFIG=")
COMPLETE = "complete"
"""File of the state that a cluster has once it was ready; names the base image that it holds."""


class Description(TypedDict):
    """What `status --json` prints."""

    name: str
    running: bool
    ready: bool
    kubeconfig: str
    kubectl: str
    helm: str
    image: str
    operator_dependencies: str
    inference_dependencies: str
    api_url: str
    node_name: str
    node_address: str
    host_address: str
    network: str
    service_network: str
    pod_network: str
    state: str
    logs: str
    resident_bytes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a cluster is started from."""

    programs: Path
    image: Path
    tools: ContainerTools


class Cluster:
    """A cluster by name, running or not."""

    def __init__(self, name: str = DEFAULT_NAME, progress: Progress | None = None) -> None:
        check_name(name)
        self.name = name
        self._progress = progress or Progress()
        self._allocations = Allocations(shared_folders=map(Path, COVERED_FOLDERS))

    def check(self) -> None:
        """Say what this machine lacks, in one sentence each.

        Raises:
            LocalClusterError: it lacks something.
        """
        check_machine(_dependencies(_silent))

    def up(self) -> None:
        """Start the cluster, or mend it, or leave it alone; when this returns it is ready.

        Raises:
            LocalClusterError: says what to do.
        """
        self.check()
        install_missing(lambda text: self._progress.say("machine", text))
        prepared = self._prepare()
        with only_one(self.name, self._say_waiting):
            layout = self._allocations.claim(self.name, foreign_routes(self._allocations))
            if self._keep(layout, prepared):
                self._progress.say("cluster", f"{self.name} is running")
                self._write_env(layout)
                return
            self._progress.step("cluster", lambda note: self._start(layout, prepared, note))
            self._write_env(layout)

    def down(self) -> None:
        """Remove the cluster with all it holds; the cache stays."""
        with only_one(self.name, self._say_waiting):
            env_file(self.name).unlink(missing_ok=True)
            layout = self._allocations.find(self.name)
            if layout is None:
                self._progress.say("cluster", f"{self.name} does not exist")
                return
            Node(layout).stop()
            shutil.rmtree(layout.state, ignore_errors=True)
            if layout.state.exists():
                shutil.rmtree(layout.state)
            self._allocations.release(self.name)
            self._progress.say("cluster", f"{self.name} is gone; the cache in {cache_root()} stays")

    def _write_env(self, layout: Layout) -> None:
        """Write .local/env of the checkout; lines that others added, for what runs on the cluster, stay while it does."""
        path = env_file(layout.name)
        path.parent.mkdir(exist_ok=True)
        others = [line for line in (read_or_none(path) or "").splitlines() if not line.startswith(OWN_LINES)]
        path.write_text("\n".join([*self.environment(), *others]) + "\n")

    def prepare_dependencies(self) -> None:
        """Fill the folders with the Python packages for pods."""
        self._progress.step("Python packages", prepare_dependencies)

    def enter(self, *command: str) -> list[str]:
        """Return a command line that runs among the node's own processes."""
        return Node(self._layout()).enter(*command)

    def environment(self) -> list[str]:
        """Return the lines of shell that let kubectl and helm find the cluster."""
        return [
            f"export PATH={shlex.quote(str(programs(_silent).folder / 'bin'))}:$PATH",
            f"export KUBECONFIG={shlex.quote(str(self._layout().kubeconfig))}",
        ]

    def describe(self) -> Description:
        """Return what there is to know; a cluster that does not exist has the addresses of none."""
        layout = self._allocations.find(self.name)
        node = None if layout is None else Node(layout)
        running = node is not None and node.supervisor() is not None
        bin_folder = programs(_silent).folder / "bin"
        inference, operator = _dependencies(_silent)
        return {
            "name": self.name,
            "running": running,
            "ready": layout is not None and running and missing(layout) is None,
            "kubeconfig": str(layout.kubeconfig) if layout else "",
            "kubectl": str(bin_folder / "kubectl"),
            "helm": str(bin_folder / "helm"),
            "image": PYTHON_IMAGE,
            "operator_dependencies": str(operator.folder),
            "inference_dependencies": str(inference.folder),
            "api_url": layout.api_url if layout else "",
            "node_name": layout.node_name if layout else "",
            "node_address": str(layout.node_address) if layout else "",
            "host_address": str(layout.host_address) if layout else "",
            "network": str(layout.network) if layout else "",
            "service_network": str(layout.services) if layout else "",
            "pod_network": str(layout.pods) if layout else "",
            "state": str(layout.state) if layout else "",
            "logs": str(layout.state / "logs") if layout else "",
            "resident_bytes": node.resident_bytes() if node else {},
        }

    def _say_waiting(self) -> None:
        self._progress.say("cluster", f"waiting for another command on {self.name} to end")

    def _layout(self) -> Layout:
        layout = self._allocations.find(self.name)
        if layout is None:
            raise LocalClusterError(
                f"Cluster {self.name} does not exist; `python3 tools/localcluster up --name {self.name}` makes it."
            )
        return layout

    def _prepare(self) -> Prepared:
        """Fill the cache, all of it side by side."""
        tools: list[ContainerTools] = []
        steps: dict[str, Callable[[Note], Path | None]] = {
            "Kubernetes": lambda note: programs(note).prepare(),
            "base image": lambda note: python_image(note).prepare(),
            "container runtime": lambda note: tools.append(container_tools(note)),
            "Python packages": prepare_dependencies,
        }
        done = self._progress.side_by_side(steps)
        built, image = done["Kubernetes"], done["base image"]
        assert built is not None
        assert image is not None
        return Prepared(built, image, tools[0])

    def _keep(self, layout: Layout, prepared: Prepared) -> bool:
        """Whether a running cluster may stay as it is; its supervisor mends what ends, which takes seconds."""
        node = Node(layout)
        if node.supervisor() is None:
            return False
        held = read_or_none(layout.state / COMPLETE)
        if held is None:
            return False  # an interrupted start
        if not wait_until(lambda: not missing(layout), REPAIR_SECONDS):
            self._progress.say("cluster", f"{self.name} runs but {missing(layout)}; starting it again")
            return False
        if held != prepared.image.name:
            import_images(node, prepared, [prepared.image / "image.tar"])
            (layout.state / COMPLETE).write_text(prepared.image.name)
        return True

    def _start(self, layout: Layout, prepared: Prepared, note: Note) -> None:
        """Start from what the last run left, as after a reboot; if that does not work, or it never was ready, from nothing."""
        complete = layout.state / COMPLETE
        if complete.exists():
            note("starting again with what it held")
            self._launch(layout, prepared)
            if wait_until(lambda: not missing(layout), READY_SECONDS / 2):
                complete.write_text(prepared.image.name)
                return
            self._progress.say("cluster", f"it does not come back ({missing(layout)}); starting from nothing")
        note("starting")
        Node(layout).stop()
        shutil.rmtree(layout.state, ignore_errors=True)
        self._launch(layout, prepared)
        node = Node(layout)
        if not wait_until(lambda: not missing(layout), READY_SECONDS, lambda: node.supervisor() is None):
            raise LocalClusterError(
                f"The cluster is not ready after {READY_SECONDS} s: {missing(layout)}; its logs are in {node.logs}."
            )
        complete.write_text(prepared.image.name)

    def _launch(self, layout: Layout, prepared: Prepared) -> None:
        """Write what the components read, start them and give them the images."""
        layout.state.mkdir(parents=True, exist_ok=True)
        (layout.state / "number").write_text(str(layout.number))
        write_configuration(layout, prepared.tools, prepared.programs / "libexec" / "certificates")
        node = Node(layout)
        node.start(write_plan(layout, prepared.tools, prepared.programs))
        pause = layout.state / "pause.tar"
        pause_image(prepared.programs / "libexec" / "pause", pause)
        api = Api.of(layout)
        self._progress.side_by_side(
            {
                "images": lambda _: import_images(node, prepared, [pause, prepared.image / "image.tar"]),
                "API server": lambda _: wait_until(api.allow_dns, READY_SECONDS, lambda: node.supervisor() is None),
            }
        )


def import_images(node: Node, prepared: Prepared, archives: list[Path]) -> None:
    """Give containerd the images; it may still be starting."""
    ctr = ["env", f"PATH={prepared.tools.search_path}", "ctr", "--namespace", "k8s.io"]

    def answers() -> bool:
        try:
            run(node.enter(*ctr, "version"))
        except LocalClusterError:
            return False
        return True

    if not wait_until(answers, READY_SECONDS / 4, lambda: node.supervisor() is None):
        raise LocalClusterError(f"containerd does not answer; what it said is in {node.logs}.")
    for archive in archives:
        run(node.enter(*ctr, "images", "import", archive))


def missing(layout: Layout) -> str | None:
    """Say in a few words what a running cluster still lacks, or None when it is ready."""
    try:
        api = Api.of(layout)
    except OSError:
        return "it was never started"
    if not api.ready():
        return "its API server does not answer"
    if not api.node_ready(layout.node_name):
        return "its node is not Ready"
    if not api.controllers_ready():
        return "its controllers do not work yet"
    if resolve(layout.node_address, "kubernetes.default.svc.cluster.local") != layout.api_service_address:
        return "its DNS server does not answer"
    if not listens(layout.api_service_address, 443):
        return "its Services are not reachable"
    return None


def read_or_none(path: Path) -> str | None:
    """Return a file's text, or None when there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def prepare_dependencies(note: Note) -> None:
    """Fill the folders for pods, one after the other: they share most downloads."""
    for artifact in _dependencies(note):
        artifact.prepare()


def _dependencies(note: Note) -> list[Artifact]:
    """Return the folders for pods: inference first, then operator."""
    return [inference_dependencies(note), operator_dependencies(note)]


def _silent(_: str) -> None:
    """A note that nobody reads."""
