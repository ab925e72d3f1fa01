"""Just enough of the Kubernetes API, and of DNS, to see whether a cluster is up."""

import json
import socket
import ssl
import struct
import urllib.error
import urllib.request
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from localcluster.configuration import DNS_PORT, read_tokens
from localcluster.layout import Layout

TIMEOUT_SECONDS = 3.0
DNS_ROLE = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "lorafleet:coredns"},
    "rules": [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ],
}
DNS_BINDING = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "lorafleet:coredns"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "lorafleet:coredns"},
    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "lorafleet-coredns"}],
}


@dataclass(frozen=True, slots=True)
class Api:
    """The API server of a cluster, as its administrator."""

    url: str
    token: str
    authority: Path

    @classmethod
    def of(cls, layout: Layout) -> "Api":
        """Return the API of a cluster that was started once."""
        return cls(layout.api_url, read_tokens(layout)["admin"], layout.state / "pki" / "ca.crt")

    def ready(self) -> bool:
        """Whether the API server says that it is."""
        return self._call("GET", "/readyz")[0] == 200

    def node_ready(self, name: str) -> bool:
        """Whether the node says that it takes pods."""
        code, body = self._call("GET", f"/api/v1/nodes/{name}")
        if code != 200:
            return False
        conditions = json.loads(body).get("status", {}).get("conditions", [])
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    def controllers_ready(self) -> bool:
        """Whether the controllers work: pods need the service account that one of them makes."""
        return self._call("GET", "/api/v1/namespaces/default/serviceaccounts/default")[0] == 200

    def allow_dns(self) -> bool:
        """Let the DNS server read what it answers from; True once that is so."""
        roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
        bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
        codes = [self._call("POST", roles, DNS_ROLE)[0], self._call("POST", bindings, DNS_BINDING)[0]]
        return all(code in {201, 409} for code in codes)

    def _call(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Return status and body; status 0 when nothing answers."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        context = ssl.create_default_context(cafile=str(self.authority))
        opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context), urllib.request.ProxyHandler({})
        )
        try:
            with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except (OSError, urllib.error.URLError):
            return 0, b""


def resolve(server: IPv4Address, name: str) -> IPv4Address | None:
    """Return the address that a DNS server gives for a name, or None."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split("."))
    query = struct.pack(">HHHHHH", 1, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.settimeout(1.0)
        try:
            channel.sendto(query, (str(server), DNS_PORT))
            answer = channel.recv(512)
        except OSError:
            return None
    num_answers = struct.unpack(">H", answer[6:8])[0] if len(answer) >= 12 else 0
    return IPv4Address(answer[-4:]) if num_answers == 1 else None


def listens(address: IPv4Address, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        socket.create_connection((str(address), port), timeout=1.0).close()
    except OSError:
        return False
    return True
