"""Whether an adapter may be served at all: judged from the two resources and the names of the cluster, nothing else."""

from dataclasses import dataclass, replace
from typing import Final

from lorafleet_contract.adapter_spec import PlacementMode
from lorafleet_contract.guests import GuestLimits
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterResource, BaseModelResource
from lorafleet_contract.sources import AdapterSource
from lorafleet_operator.decide.checks import Chain, Check, first_found
from lorafleet_operator.decide.views import Snapshot


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an adapter is not accepted."""

    reason: Reason
    message: str
    hint: str = ""
    retryable: bool = False
    """Whether it may go away without a change of the LoraAdapter."""
    keeps_serving: bool = False
    """Whether a revision that serves goes on serving: the refusal is about the desired one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An adapter that asks to be served, and what it is judged by."""

    adapter: AdapterResource
    snapshot: Snapshot

    @property
    def base(self) -> BaseModelResource:
        """The base that it names; the first check has found it."""
        assert self.snapshot.base is not None
        return self.snapshot.base

    @property
    def where(self) -> str:
        """The base as messages name it."""
        namespace, name = self.snapshot.key
        return f"BaseModelDeployment {namespace}/{name}"

    @property
    def declared(self) -> AdapterSource | None:
        """The source of the base that it names."""
        name = self.adapter.spec.source.name
        return next((source for source in self.base.spec.adapter_sources if source.name == name), None)


def refusal_of(adapter: AdapterResource, snapshot: Snapshot) -> Refusal | None:
    """Return why the adapter is not accepted; None when it is."""
    found = first_found(ACCEPTANCE, Candidate(adapter, snapshot))
    return replace(found[1], hint=found[0].hint) if found is not None else None


def _base_is_missing(given: Candidate) -> Refusal | None:
    if given.snapshot.base is not None:
        return None
    unread = given.snapshot.unread_base
    message = f"there is no {given.where}" if unread is None else f"{given.where} cannot be read: {unread.problem}"
    return Refusal(Reason.BASE_NOT_FOUND, message, retryable=True, keeps_serving=True)


def _namespace_is_not_allowed(given: Candidate) -> Refusal | None:
    namespace = given.adapter.metadata.namespace
    if namespace == given.snapshot.key[0] or {"*", namespace} & set(given.base.spec.allowed_namespaces):
        return None
    return Refusal(Reason.BASE_NOT_ALLOWED, f"{given.where} does not allow namespace {namespace}")


def _name_is_not_for_guests(given: Candidate) -> Refusal | None:
    limits = guest_limits(given.adapter, given.base)
    if limits is None or limits.may_use(given.adapter.served_name):
        return None
    allowed = ", ".join(limits.served_names or [])
    message = f"{given.where} allows namespace {given.adapter.metadata.namespace} the names {allowed} only"
    return Refusal(Reason.GUEST_NOT_ALLOWED, message)


def _asks_more_than_a_guest_may(given: Candidate) -> Refusal | None:
    limits, asked = guest_limits(given.adapter, given.base), given.adapter.placement
    if limits is None:
        return None
    where = f"{given.where} does not let namespace {given.adapter.metadata.namespace}"
    if asked.pin and not limits.allow_pin:
        return Refusal(Reason.GUEST_NOT_ALLOWED, f"{where} pin", keeps_serving=True)
    if asked.priority > (limits.max_priority or 0):
        message = f"{where} have a priority above {limits.max_priority or 0}"
        return Refusal(Reason.GUEST_NOT_ALLOWED, message, keeps_serving=True)
    return None


def guest_limits(adapter: AdapterResource, base: BaseModelResource) -> GuestLimits | None:
    """Return what limits an adapter of another namespace; None for those of the base's own."""
    if adapter.metadata.namespace == base.metadata.namespace:
        return None
    return base.spec.lora.guests.limits_of(adapter.metadata.namespace)


def _name_is_taken(given: Candidate) -> Refusal | None:
    name = given.adapter.served_name
    claim = given.snapshot.claims.get(name)
    if claim is None or claim.uid == given.adapter.metadata.uid:
        return None
    return Refusal(Reason.NAME_CONFLICT, claim.refuses(name), retryable=claim.reserved_until is not None)


def _is_on_demand_in_vain(given: Candidate) -> Refusal | None:
    asked = given.adapter.placement
    is_quiet_on_demand = asked.mode is PlacementMode.AUTO and asked.least == 0
    if asked.mode is not PlacementMode.ON_DEMAND and not is_quiet_on_demand:
        return None
    if given.base.spec.lora.load_on_demand != "Disabled":
        return None
    words = "placement Auto with minReplicas 0" if is_quiet_on_demand else "placement OnDemand"
    message = f"{words}, and {given.where} has loadOnDemand Disabled"
    return Refusal(Reason.INVALID_SPEC, message, keeps_serving=True)


def _source_is_undeclared(given: Candidate) -> Refusal | None:
    if given.adapter.spec.suspend or given.declared is not None:
        return None
    return _not_allowed(f"{given.where} declares no source {given.adapter.spec.source.name!r}")


def _source_is_of_another_kind(given: Candidate) -> Refusal | None:
    ref, declared = given.adapter.spec.source, given.declared
    if given.adapter.spec.suspend or declared is None:
        return None
    if declared.takes_repo == (ref.repo is not None):
        return None
    wanted = "repo" if declared.takes_repo else "path"
    return _not_allowed(f"source {ref.name!r} of {given.where} is {_kind_of(declared)}: it takes a {wanted}")


def _repository_is_not_listed(given: Candidate) -> Refusal | None:
    ref, declared = given.adapter.spec.source, given.declared
    if given.adapter.spec.suspend or declared is None or ref.repo is None:
        return None
    if not declared.repos or any(_matches(entry, ref.repo) for entry in declared.repos):
        return None
    return _not_allowed(f"source {ref.name!r} of {given.where} does not allow repository {ref.repo}")


def _not_allowed(message: str) -> Refusal:
    return Refusal(Reason.SOURCE_NOT_ALLOWED, message, keeps_serving=True)


def _kind_of(source: AdapterSource) -> str:
    if source.hugging_face is not None:
        return "a hub"
    if source.oci is not None:
        return "a registry"
    return "a bucket" if source.s3 is not None else "a volume"


def _matches(entry: str, repo: str) -> bool:
    return repo.startswith(entry[:-1]) if entry.endswith("/*") else repo == entry


ACCEPTANCE: Final[Chain[Candidate, Refusal]] = (
    Check(
        "The BaseModelDeployment that `baseModelRef` names exists.",
        (Reason.BASE_NOT_FOUND,),
        "Apply the BaseModelDeployment, or correct `baseModelRef`.",
        _base_is_missing,
    ),
    Check(
        "The base allows the adapter's namespace.",
        (Reason.BASE_NOT_ALLOWED,),
        "Ask the owner of the base to list the namespace in `allowedNamespaces`.",
        _namespace_is_not_allowed,
    ),
    Check(
        "The base allows adapters of another namespace the served name.",
        (Reason.GUEST_NOT_ALLOWED,),
        "Set a `servedName` that `lora.guests` of the base allows, or ask its owner.",
        _name_is_not_for_guests,
    ),
    Check(
        "No other resource holds the served name, and none of another namespace held it lately.",
        (Reason.NAME_CONFLICT,),
        "Set another `servedName`, or delete the resource that holds the name.",
        _name_is_taken,
    ),
    Check(
        "The base allows adapters of another namespace the pin or the priority.",
        (Reason.GUEST_NOT_ALLOWED,),
        "Lower `placement.priority`, drop `placement.pin`, or ask the owner of the base to raise `lora.guests`.",
        _asks_more_than_a_guest_may,
    ),
    Check(
        "An adapter with `placement.mode: OnDemand`, or `Auto` with `minReplicas: 0`, has a base that loads on demand.",
        (Reason.INVALID_SPEC,),
        "Place it with `mode: Fixed` or `All` or with `minReplicas: 1`, or set `lora.loadOnDemand: Enabled` on the base.",
        _is_on_demand_in_vain,
    ),
    Check(
        "The base declares the source that `source.name` names.",
        (Reason.SOURCE_NOT_ALLOWED,),
        "Declare the source in `adapterSources` of the base, or correct `source.name`.",
        _source_is_undeclared,
    ),
    Check(
        "A source that is a hub or a registry is given a `repo`, a bucket or a volume a `path`.",
        (Reason.SOURCE_NOT_ALLOWED,),
        "Give `repo` for a hub or a registry, else `path`.",
        _source_is_of_another_kind,
    ),
    Check(
        "The source allows the repository.",
        (Reason.SOURCE_NOT_ALLOWED,),
        "Add the repository to `huggingFace.repos` or `oci.repos` of the source.",
        _repository_is_not_listed,
    ),
)
"""In this order; the first that finds something decides. A suspended adapter's source is not judged."""
