"""What the supervisor of a cluster runs: the components' command lines, and the folders it puts private ones over."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from localcluster.debian import ContainerTools
from localcluster.layout import Layout

COVERED_FOLDERS = ("/var/lib/cni", "/var/lib/kubelet", "/var/log/containers")
"""Folders that components use whatever their configuration says. They must exist on the machine to be covered in the node."""
KERNEL_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
"""What kubelet sets for the whole machine when it starts; in the node it writes to a copy."""


@dataclass(frozen=True, slots=True)
class PlannedComponent:
    """A program that the supervisor keeps running; `after`: what must listen first."""

    name: str
    command: list[str]
    environment: dict[str, str]
    after: tuple[str, int] | None
    log: str


def write_plan(layout: Layout, tools: ContainerTools, programs: Path) -> Path:
    """Write the supervisor's plan and return its path."""
    bound = {"/var/lib/kubelet": str(layout.state / "kubelet")}
    for setting in KERNEL_SETTINGS:
        real = Path("/proc/sys") / setting
        if real.exists():
            copy = layout.state / "sysctl" / setting.replace("/", ".")
            copy.write_text(real.read_text())
            bound[str(real)] = str(copy)
    content = {
        "empty_folders": ["/run", *(folder for folder in COVERED_FOLDERS if folder not in bound)],
        "bound": bound,
        "components": [asdict(component) for component in plan_components(layout, tools, programs)],
    }
    path = layout.state / "plan.json"
    path.write_text(json.dumps(content, indent=1))
    return path


def plan_components(layout: Layout, tools: ContainerTools, programs: Path) -> list[PlannedComponent]:
    """Return the components in the order of their start."""
    api = (str(layout.node_address), 6443)
    environment = {"PATH": tools.search_path, "HOME": "/root"}
    containerd = next(path for folder in tools.search_path.split(":") if (path := Path(folder) / "containerd").exists())
    commands = {
        "etcd": etcd(layout),
        "kube-apiserver": apiserver(layout),
        "containerd": ["--config", f"{layout.state}/containerd.toml"],
        "kubelet": kubelet(layout),
        "kube-proxy": proxy(layout),
        "kube-controller-manager": controller_manager(layout),
        "kube-scheduler": scheduler(layout),
        "coredns": ["-conf", f"{layout.state}/Corefile"],
    }
    first = {"etcd": None, "kube-apiserver": ("127.0.0.1", 2379), "containerd": None}
    return [
        PlannedComponent(
            name,
            [str(containerd if name == "containerd" else programs / "libexec" / name), *arguments],
            environment,
            first.get(name, api),
            str(layout.state / "logs" / f"{name}.log"),
        )
        for name, arguments in commands.items()
    ]


def etcd(layout: Layout) -> list[str]:
    """Listen on loopback only, and never wait for the disk: a cluster for tests may be lost with the machine."""
    return [
        "--name=lorafleet",
        f"--data-dir={layout.state}/etcd",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=lorafleet=http://127.0.0.1:2380",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def apiserver(layout: Layout) -> list[str]:
    """RBAC and node authorisation, tokens for the components, service accounts."""
    pki = layout.state / "pki"
    return [
        "--etcd-servers=http://127.0.0.1:2379",
        f"--bind-address={layout.node_address}",
        f"--advertise-address={layout.node_address}",
        "--secure-port=6443",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--token-auth-file={pki}/tokens.csv",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--service-cluster-ip-range={layout.services}",
        f"--service-account-key-file={pki}/service-account.key",
        f"--service-account-signing-key-file={pki}/service-account.key",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        "--shutdown-delay-duration=0s",
        "--profiling=false",
    ]


def controller_manager(layout: Layout) -> list[str]:
    """One instance, no election, no port."""
    pki = layout.state / "pki"
    return [
        f"--kubeconfig={layout.state}/kube-controller-manager.kubeconfig",
        f"--service-account-private-key-file={pki}/service-account.key",
        f"--root-ca-file={pki}/ca.crt",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        "--secure-port=0",
        "--profiling=false",
    ]


def scheduler(layout: Layout) -> list[str]:
    """One instance, no election, no port."""
    return [
        f"--kubeconfig={layout.state}/kube-scheduler.kubeconfig",
        "--leader-elect=false",
        "--secure-port=0",
        "--profiling=false",
    ]


def kubelet(layout: Layout) -> list[str]:
    """The rest is in kubelet.json."""
    return [
        f"--config={layout.state}/kubelet.json",
        f"--kubeconfig={layout.state}/kubelet.kubeconfig",
        f"--hostname-override={layout.node_name}",
        f"--node-ip={layout.node_address}",
        f"--cert-dir={layout.state}/pki/kubelet",
    ]


def proxy(layout: Layout) -> list[str]:
    """The connection tracking table's size is the machine's affair."""
    return [
        "--proxy-mode=iptables",
        f"--kubeconfig={layout.state}/kube-proxy.kubeconfig",
        f"--hostname-override={layout.node_name}",
        f"--cluster-cidr={layout.pods}",
        f"--bind-address={layout.node_address}",
        f"--nodeport-addresses={layout.node_address}/32",
        "--healthz-bind-address=127.0.0.1:10256",
        "--metrics-bind-address=127.0.0.1:10249",
        "--iptables-localhost-nodeports=false",
        "--iptables-min-sync-period=100ms",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
    ]
