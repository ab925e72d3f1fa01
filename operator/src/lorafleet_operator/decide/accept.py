"""Whether an adapter may be served at all: judged from the two resources and the names of the cluster, nothing else."""

from dataclasses import dataclass

from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterResource, BaseModelResource, PlacementMode
from lorafleet_contract.sources import AdapterSource, HuggingFacePlace
from lorafleet_operator.decide.views import Snapshot


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an adapter is not taken."""

    reason: Reason
    message: str
    retryable: bool = False
    """Whether it may go away without a change of the LoraAdapter."""
    keeps_serving: bool = False
    """Whether a revision that serves goes on serving: the refusal is about the desired one."""


def refusal_of(adapter: AdapterResource, snapshot: Snapshot) -> Refusal | None:
    """Return why the adapter is not taken; None when it is."""
    base = snapshot.base
    namespace, name = snapshot.key
    if base is None:
        message = f"there is no BaseModelDeployment {namespace}/{name}"
        return Refusal(Reason.BASE_NOT_FOUND, message, retryable=True, keeps_serving=True)
    allowed = base.spec.allowed_namespaces
    if adapter.metadata.namespace != namespace and not {"*", adapter.metadata.namespace} & set(allowed):
        message = f"BaseModelDeployment {namespace}/{name} does not allow namespace {adapter.metadata.namespace}"
        return Refusal(Reason.BASE_NOT_ALLOWED, message)
    claim = snapshot.claims.get(adapter.served_name)
    if claim is not None and claim.uid != adapter.metadata.uid:
        return Refusal(Reason.NAME_CONFLICT, f"{claim.title} is older and has the name {adapter.served_name}")
    if adapter.spec.placement.mode is PlacementMode.ON_DEMAND and base.spec.lora.load_on_demand == "Disabled":
        message = f"placement OnDemand, and BaseModelDeployment {namespace}/{name} has loadOnDemand Disabled"
        return Refusal(Reason.INVALID_SPEC, message, keeps_serving=True)
    return None if adapter.spec.suspend else _source_refusal(adapter, base)


def _source_refusal(adapter: AdapterResource, base: BaseModelResource) -> Refusal | None:
    ref = adapter.spec.source
    declared = next((source for source in base.spec.adapter_sources if source.name == ref.name), None)
    where = f"BaseModelDeployment {base.metadata.namespace}/{base.metadata.name}"
    if declared is None:
        return _not_allowed(f"{where} declares no source {ref.name!r}")
    if (declared.hugging_face is not None) != (ref.repo is not None):
        wanted = "repo" if declared.hugging_face is not None else "path"
        return _not_allowed(f"source {ref.name!r} of {where} is {_kind_of(declared)}: it takes a {wanted}")
    if declared.hugging_face is not None and ref.repo is not None and not _allows(declared.hugging_face, ref.repo):
        return _not_allowed(f"source {ref.name!r} of {where} does not allow repository {ref.repo}")
    return None


def _not_allowed(message: str) -> Refusal:
    return Refusal(Reason.SOURCE_NOT_ALLOWED, message, keeps_serving=True)


def _kind_of(source: AdapterSource) -> str:
    if source.hugging_face is not None:
        return "a hub"
    return "a bucket" if source.s3 is not None else "a volume"


def _allows(place: HuggingFacePlace, repo: str) -> bool:
    if not place.repos:
        return True
    return any(repo.startswith(entry[:-1]) if entry.endswith("/*") else repo == entry for entry in place.repos)
