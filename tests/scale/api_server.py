"""The real API server with etcd behind it, and nothing else of a cluster: no kubelet, no controllers, no admission of service accounts."""

import json
import os
import secrets
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from localcluster.gobuild import programs

START_SECONDS = 120.0
END_SECONDS = 30.0
COLLECTOR = {"GOGC": "400"}
"""An API server has a machine of its own; here it shares two cores with what is measured, and memory is what there is enough of."""
ISSUER = "https://kubernetes.default.svc.cluster.local"


@dataclass(frozen=True)
class ApiServer:
    """A running one: who asks is its administrator."""

    url: str
    kubeconfig: Path
    etcd_pid: int
    pid: int


@contextmanager
def serve_api() -> Iterator[ApiServer]:
    """Run one on free ports of the loopback, with a store of its own that is gone afterwards."""
    libexec = programs(lambda _: None).prepare() / "libexec"
    with tempfile.TemporaryDirectory(prefix="lorafleet-scale-") as name, ExitStack() as stack:
        folder = Path(name)
        subprocess.run([str(libexec / "certificates"), str(folder), "127.0.0.1", "localhost"], check=True)
        token = secrets.token_hex(16)
        (folder / "tokens.csv").write_text(f'{token},scale,scale,"system:masters"\n')
        client, peer, port = free_port(), free_port(), free_port()
        environment = {**os.environ, **COLLECTOR}
        command = [str(libexec / "etcd"), *_etcd(folder, client, peer)]
        etcd = stack.enter_context(running(folder / "etcd.log", *command, environment=environment))
        command = [str(libexec / "kube-apiserver"), *_apiserver(folder, client, port)]
        server = stack.enter_context(running(folder / "api.log", *command, environment=environment))
        url = f"https://127.0.0.1:{port}"
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(_kubeconfig(url, folder / "ca.crt", token))
        _wait_ready(url, token, server, folder / "api.log")
        yield ApiServer(url, kubeconfig, etcd.pid, server.pid)


@contextmanager
def running(log: Path, *command: str, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that writes what it says to a file, and end it."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """Return a port of the loopback that nobody has."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _etcd(folder: Path, client: int, peer: int) -> list[str]:
    urls = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    return [
        "--name=scale",
        f"--data-dir={folder}/etcd",
        f"--listen-client-urls={urls[0]}",
        f"--advertise-client-urls={urls[0]}",
        f"--listen-peer-urls={urls[1]}",
        f"--initial-advertise-peer-urls={urls[1]}",
        f"--initial-cluster=scale={urls[1]}",
        "--unsafe-no-fsync",
        "--log-level=error",
    ]


def _apiserver(folder: Path, etcd: int, port: int) -> list[str]:
    return [
        f"--etcd-servers=http://127.0.0.1:{etcd}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        f"--secure-port={port}",
        f"--tls-cert-file={folder}/apiserver.crt",
        f"--tls-private-key-file={folder}/apiserver.key",
        f"--token-auth-file={folder}/tokens.csv",
        "--authorization-mode=RBAC",
        # pods are written by the harness: nobody makes the service accounts that this one asks for
        "--disable-admission-plugins=ServiceAccount",
        "--service-cluster-ip-range=10.99.0.0/16",
        f"--service-account-key-file={folder}/service-account.key",
        f"--service-account-signing-key-file={folder}/service-account.key",
        f"--service-account-issuer={ISSUER}",
        "--profiling=false",
    ]


def _kubeconfig(url: str, authority: Path, token: str) -> str:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "scale", "cluster": {"server": url, "certificate-authority": str(authority)}}],
        "users": [{"name": "scale", "user": {"token": token}}],
        "contexts": [{"name": "scale", "context": {"cluster": "scale", "user": "scale"}}],
        "current-context": "scale",
    }
    return json.dumps(content)


def _wait_ready(url: str, token: str, server: subprocess.Popen[bytes], log: Path) -> None:
    import ssl

    context = ssl.create_default_context(cafile=str(log.parent / "ca.crt"))
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"{url}/readyz", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"the API server does not get ready\n{log.read_text()[-2000:]}"
        try:
            with opener.open(request, timeout=3):
                return
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            pass
        time.sleep(0.1)
