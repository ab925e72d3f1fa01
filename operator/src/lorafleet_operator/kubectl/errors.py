"""Why a question could not be answered. Exit status 3.

PluginError
├── NoCluster           no kubeconfig, no such context, or nobody answers
├── NotAuthenticated    401
├── NotAllowed          403: names the verb and the resource
├── NotInstalled        the cluster has no such kinds
├── NotUnderstood       another answer of the API server, or a resource that this version cannot read
├── NoSuchBase          no BaseModelDeployment of that name; has the names that are near
├── NoSuchAdapter       no LoraAdapter of that name; has the names that are near
└── NothingToDecide     a rollout that waits for nobody
"""

from collections.abc import Sequence

from lorafleet_common.kube.errors import KubeError, KubeNotFound, KubeRefused, KubeUnavailable
from lorafleet_contract.names import GROUP


class PluginError(Exception):
    """The root of these errors."""


class NoCluster(PluginError):
    """There is no API server to ask."""


class NotAuthenticated(PluginError):
    """The API server does not know who asks."""


class NotAllowed(PluginError):
    """Who asks lacks a right."""

    def __init__(self, verb: str, resource: str, namespace: str | None, said: str) -> None:
        super().__init__(f"you lack the verb {verb} on {resource} {where(namespace)}: {said}")
        self.verb = verb
        self.resource = resource
        self.namespace = namespace
        """None is all of them."""


class NotInstalled(PluginError):
    """The custom resource definitions are not there."""


class NotUnderstood(PluginError):
    """What came back is of no use."""


class _NoSuch(PluginError):
    kind = ""

    def __init__(self, name: str, namespace: str | None, near: Sequence[str]) -> None:
        hint = f"; there is {', '.join(near)}" if near else ""
        super().__init__(f"there is no {self.kind} {name} {where(namespace)}{hint}")
        self.near = tuple(near)


class NoSuchBase(_NoSuch):
    """No BaseModelDeployment of that name."""

    kind = "BaseModelDeployment"


class NoSuchAdapter(_NoSuch):
    """No LoraAdapter of that name."""

    kind = "LoraAdapter"


class NothingToDecide(PluginError):
    """There is nothing that a person could promote or give up."""


def where(namespace: str | None) -> str:
    """Return a namespace as messages name it; None is all of them."""
    return f"in namespace {namespace}" if namespace is not None else "in all namespaces"


def resource_of(plural: str) -> str:
    """Return a plural as rights name it."""
    group = {"pods": "", "events": "", "leases": "coordination.k8s.io"}.get(plural, GROUP)
    return f"{plural}.{group}" if group else plural


def error_of(error: KubeError, verb: str, plural: str, namespace: str | None) -> PluginError:
    """Return what an answer of the API server means to the one who asked."""
    if isinstance(error, KubeRefused) and error.status == 401:
        return NotAuthenticated(f"the API server does not know you: {error.message or error.reason}")
    if isinstance(error, KubeRefused) and error.status == 403:
        return NotAllowed(verb, resource_of(plural), namespace, error.message or error.reason)
    if isinstance(error, KubeNotFound):
        return NotInstalled(f"the cluster has no {resource_of(plural)}: install the chart lorafleet-crds")
    if isinstance(error, KubeUnavailable) and error.status == 0:
        return NoCluster(f"the API server does not answer: {error}")
    return NotUnderstood(f"{verb} {resource_of(plural)} {where(namespace)}: {error}")
