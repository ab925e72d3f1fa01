"""Objects of a base that a cluster may not serve, for inference gateways, and what is said of them. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from lorafleet_common.kube.errors import KubeError, KubeNotFound, KubeRefused
from lorafleet_common.paths import Json
from lorafleet_contract.names import PUBLIC_PORT, REVISION_MARK
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterResource, AdapterStatus, BaseModelResource
from lorafleet_contract.routing import AppliedObject
from lorafleet_operator.decide.conditions import INFERENCE_POOL, MODEL_REWRITE, Verdict, condition_of, said
from lorafleet_operator.decide.objects import KINDS, Child, child_of, selector


@dataclass(frozen=True, slots=True)
class OptionalKind:
    """A kind that nothing of lorafleet needs: a base may ask for one, and is Ready without."""

    kind: str
    condition: str
    """Its condition on the base, there while one is asked for."""

    @property
    def api(self) -> str:
        """Group and version."""
        return KINDS[self.kind][0]

    @property
    def plural(self) -> str:
        """Its name in paths and rights."""
        return KINDS[self.kind][1]

    def applied(self, base: BaseModelResource) -> AppliedObject | None:
        """Return the one that status tells of."""
        return base.status.inference_pool if self is POOL else base.status.model_rewrite


POOL: Final = OptionalKind("InferencePool", INFERENCE_POOL)
REWRITE: Final = OptionalKind("InferenceModelRewrite", MODEL_REWRITE)
OPTIONAL_KINDS: Final = (POOL, REWRITE)


@dataclass(frozen=True, slots=True)
class OptionalFacts:
    """What became of an optional object of a base."""

    applied: AppliedObject | None = None
    """The one that there is."""
    reason: Reason | None = None
    """Why it is as it is; None: none is wanted, and none is left."""
    message: str = ""


Facts = Mapping[OptionalKind, OptionalFacts]
"""By kind; one that is absent was not looked at."""
NO_FACTS: Final[Facts] = MappingProxyType({})


def wanted(kind: OptionalKind, base: BaseModelResource, adapters: Iterable[AdapterResource]) -> Child | None:
    """Return the object of a kind that a base asks for, with what its adapters say of themselves; None: it asks for none."""
    return _pool_of(base) if kind is POOL else _rewrite_of(base, adapters)


def _pool_of(base: BaseModelResource) -> Child | None:
    asked = base.spec.routing.inference_pool
    if asked is None:
        return None
    picker = asked.endpoint_picker_ref
    reference = {"group": "", "kind": "Service", "name": picker.name, "port": {"number": picker.port}}
    spec = {
        "selector": {"matchLabels": selector(base)},
        "targetPorts": [{"number": PUBLIC_PORT}],
        "endpointPickerRef": {**reference, "failureMode": picker.failure_mode},
    }
    return child_of(base, POOL.kind, base.metadata.name, {"spec": spec})


def _rewrite_of(base: BaseModelResource, adapters: Iterable[AdapterResource]) -> Child | None:
    """Return the rewrite with a rule for each adapter that is rolled out; it is there without one too.

    So a cluster that lacks the kind is told of when the field is set, and not when a rollout begins.
    """
    asked = base.spec.routing.inference_pool
    if asked is None or asked.model_rewrite == "Disabled":
        return None
    targets = {
        name: found
        for adapter in adapters
        if (name := adapter.status.served_name) is not None  # it has won the name
        and adapter.metadata.deletion_timestamp is None
        and (found := _targets(name, adapter.status))
    }
    rules = [
        {"matches": [{"model": {"type": "Exact", "value": name}}], "targets": targets[name]} for name in sorted(targets)
    ]
    pool = {"group": POOL.api.partition("/")[0], "kind": POOL.kind, "name": base.metadata.name}
    return child_of(base, REWRITE.kind, base.metadata.name, {"spec": {"poolRef": pool, "rules": rules}})


def _targets(name: str, status: AdapterStatus) -> list[Json]:
    """Return who gets what part of the requests for an adapter; nothing where all goes to the stable revision.

    That one is the bare name: a pod means it by that, its metrics call it so, and what a picker has not heard of yet when
    the rollout ends is answered all the same.
    """
    shares = [share for share in status.traffic or () if share.weight > 0]
    if all(share.revision == status.stable_revision for share in shares):
        return []
    return [
        {
            "modelRewrite": name
            if share.revision == status.stable_revision
            else f"{name}{REVISION_MARK}{share.revision}",
            "weight": share.weight,
        }
        for share in shares
    ]


def refused(kind: OptionalKind, error: KubeError, applied: AppliedObject | None) -> OptionalFacts:
    """Return what it means that the API server did not do what it was asked."""
    if isinstance(error, KubeNotFound):
        message = f"the cluster does not serve {kind.kind} of {kind.api}: install the CRDs of the Gateway API Inference Extension"
        return OptionalFacts(None, Reason.API_NOT_FOUND, message)
    if isinstance(error, KubeRefused):
        message = f"the operator has no rights on {kind.plural} (operator.inferencePools of the chart): {error.message}"
        return OptionalFacts(applied, Reason.FORBIDDEN, message)
    return OptionalFacts(applied, Reason.APPLY_FAILED, error.message)


def verdicts_of(base: BaseModelResource, facts: Facts) -> Sequence[Verdict]:
    """Return the conditions of what is asked for; where nothing new is known of one, what was said before stands."""
    return [verdict for kind in OPTIONAL_KINDS if (verdict := _verdict(base, kind, facts.get(kind))) is not None]


def _verdict(base: BaseModelResource, kind: OptionalKind, facts: OptionalFacts | None) -> Verdict | None:
    if facts is None:
        before = condition_of(base.status.conditions, kind.condition)
        return Verdict(before.type, before.status, before.reason, before.message) if before is not None else None
    if facts.reason is None:
        return None
    return said(kind.condition, facts.reason is Reason.APPLIED, facts.reason, facts.message)


def applied_now(base: BaseModelResource, kind: OptionalKind, facts: Facts) -> AppliedObject | None:
    """Return the object that there is of a kind, as far as is known."""
    return facts[kind].applied if kind in facts else kind.applied(base)
