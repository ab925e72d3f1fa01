"""The API server that kubectl would talk to, by the same rules."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import Configuration

from lorafleet_common.kube.client import SERVICE_ACCOUNT, KubeApi, use_token_file
from lorafleet_operator.kubectl.errors import NoCluster

DEFAULT_NAMESPACE: Final = "default"


@dataclass(frozen=True, slots=True)
class Connection:
    """An API server, and the namespace that is meant where none is named."""

    api: KubeApi
    namespace: str


async def connect(kubeconfig: str | None, context: str | None) -> Connection:
    """Return the cluster of a kubeconfig's context.

    Args:
        kubeconfig: its path; None: those of `KUBECONFIG`, else `~/.kube/config`, else in a pod its service account.
        context: None: the current one.

    Raises:
        NoCluster: there is none, or no such context.
    """
    paths = kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    configuration = Configuration()
    try:
        chosen, namespace = _chosen(paths, context)
        await kube_config.load_kube_config(paths, chosen, configuration, persist_config=False)
    except (kube_config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, KeyError) as error:
        if kubeconfig is None and context is None and (SERVICE_ACCOUNT / "token").is_file():
            return _of_pod(configuration)
        asked = f"context {context} of {paths}" if context is not None else f"kubeconfig {paths}"
        raise NoCluster(f"no cluster by {asked}: {error}") from error
    return Connection(KubeApi(configuration), namespace)


def _chosen(paths: str, asked: str | None) -> tuple[str, str]:
    """Return a context and its namespace. Of several files the first that says something is right, as for kubectl.

    Raises:
        ValueError: there is no file, or none that says which context.
    """
    documents = [
        yaml.safe_load(path.read_text()) or {}
        for path in (Path(part).expanduser() for part in paths.split(os.pathsep) if part)
        if path.exists()
    ]
    if not documents:
        raise ValueError("there is no such file")
    chosen = asked or next((d["current-context"] for d in documents if d.get("current-context")), None)
    if chosen is None:
        raise ValueError("it has no current context: name one with --context")
    for document in documents:
        for one in document.get("contexts") or []:
            if one["name"] == chosen:
                return chosen, (one.get("context") or {}).get("namespace") or DEFAULT_NAMESPACE
    raise ValueError(f"there is no context {chosen}")


def _of_pod(configuration: Configuration) -> Connection:
    try:
        kube_config.load_incluster_config(client_configuration=configuration, try_refresh_token=False)
        namespace = (SERVICE_ACCOUNT / "namespace").read_text().strip()
    except (kube_config.ConfigException, OSError) as error:
        raise NoCluster(f"no cluster by the service account: {error}") from error
    use_token_file(configuration, SERVICE_ACCOUNT / "token")
    return Connection(KubeApi(configuration), namespace or DEFAULT_NAMESPACE)
