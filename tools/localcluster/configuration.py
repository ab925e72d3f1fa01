"""The files that the components of a cluster read."""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from localcluster.debian import ContainerTools
from localcluster.images import PAUSE_IMAGE
from localcluster.layout import Layout
from localcluster.progress import run

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
DNS_PORT = 53
IDENTITIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "admin": ("lorafleet-admin", ("system:masters",)),
    "kube-controller-manager": ("system:kube-controller-manager", ()),
    "kube-scheduler": ("system:kube-scheduler", ()),
    "kube-proxy": ("system:kube-proxy", ()),
    "coredns": ("lorafleet-coredns", ()),
    "kubelet": ("system:node:{node}", ("system:nodes",)),
}
"""Who the API server takes each bearer of a token for."""


def write_configuration(layout: Layout, tools: ContainerTools, certificates: Path) -> None:
    """Write every file; keys and tokens that are there already stay."""
    state = layout.state
    for folder in ("pki", "kubelet", "logs", "logs/pods", "cni", "sysctl", "volume-plugins", "opt"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "pki").chmod(0o700)
    if not (state / "pki" / "complete").exists():
        names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ]
        addresses = [str(layout.node_address), str(layout.api_service_address), "127.0.0.1"]
        run([certificates, state / "pki", *addresses, *names])
        write_tokens(layout)
        (state / "pki" / "complete").touch()
    for identity, token in read_tokens(layout).items():
        path = layout.kubeconfig if identity == "admin" else state / f"{identity}.kubeconfig"
        write_private(path, kubeconfig(layout, token))
    (state / "containerd.toml").write_text(containerd_toml(layout, tools))
    (state / "cni" / "10-lorafleet.conflist").write_text(cni_list(layout))
    (state / "kubelet.json").write_text(kubelet_configuration(layout))
    (state / "resolv.conf").write_text(f"nameserver {layout.node_address}\n")
    (state / "Corefile").write_text(corefile(layout))


def write_private(path: Path, text: str) -> None:
    """Write a file that only root reads."""
    path.touch(mode=0o600)
    path.write_text(text)


def write_tokens(layout: Layout) -> None:
    """Make a token for each identity, in the API server's format."""
    lines = []
    for identity, (user, groups) in IDENTITIES.items():
        name = user.format(node=layout.node_name)
        lines.append(f'{secrets.token_hex(32)},{name},{identity},"{",".join(groups)}"\n')
    write_private(layout.state / "pki" / "tokens.csv", "".join(lines))


def read_tokens(layout: Layout) -> dict[str, str]:
    """Return the tokens by identity."""
    lines = (layout.state / "pki" / "tokens.csv").read_text().splitlines()
    return {line.split(",")[2]: line.split(",")[0] for line in lines}


def kubeconfig(layout: Layout, token: str) -> str:
    """Return a kubeconfig, which is JSON as well as YAML."""
    cluster = {"server": layout.api_url, "certificate-authority": str(layout.state / "pki" / "ca.crt")}
    name = layout.node_name
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    return json.dumps(content, indent=1) + "\n"


def containerd_toml(layout: Layout, tools: ContainerTools) -> str:
    """Return containerd's configuration, format version 2."""
    return f"""version = 2
root = "{layout.state}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", \
"io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
path = "{layout.state}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{tools.cni_folder}"
conf_dir = "{layout.state}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter(layout.state)}"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def snapshotter(folder: Path) -> str:
    """Return the way containerd keeps image layers: overlays, unless the folder's own file system is one already (as in a container)."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    parents = {str(path) for path in (folder, *folder.parents)}
    kinds = {fields[1]: fields[2] for fields in mounts if fields[1] in parents}
    return "native" if kinds.get(max(kinds, key=len, default="/")) == "overlay" else "overlayfs"


def cni_list(layout: Layout) -> str:
    """Return the pods' network: a routed link each, so that all traffic passes the node's packet filter."""
    ipam = {
        "type": "host-local",
        "dataDir": "/run/cni",
        "ranges": [[{"subnet": str(layout.pods)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return json.dumps(
        {"cniVersion": "0.4.0", "name": "lorafleet", "plugins": [{"type": "ptp", "ipMasq": False, "ipam": ipam}]}
    )


def kubelet_configuration(layout: Layout) -> str:
    """Return kubelet's configuration. It neither evicts nor collects images because the machine's disk is nearly full."""
    state = layout.state
    content = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": str(layout.node_address),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(state / "pki" / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup}",
        "clusterDNS": [str(layout.node_address)],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "evictionHard": {"imagefs.available": "1%", "memory.available": "100Mi", "nodefs.available": "1%"},
        "failCgroupV1": False,
        "failSwapOn": False,
        "healthzBindAddress": "127.0.0.1",
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "podLogsDir": str(state / "logs" / "pods"),
        "resolvConf": str(state / "resolv.conf"),
        "serializeImagePulls": False,
        "volumePluginDir": str(state / "volume-plugins"),
    }
    return json.dumps(content, indent=1)


def corefile(layout: Layout) -> str:
    """Return the DNS server's configuration: the cluster's own names, and nothing beyond."""
    return f""".:{DNS_PORT} {{
    bind {layout.node_address}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {layout.state}/coredns.kubeconfig
    }}
    cache 5
}}
"""
