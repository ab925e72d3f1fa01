"""What the gateway knows of the cluster, as frozen pictures, and how API objects become them."""

import logging
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from lorafleet_common.kube.cache import Unreadable
from lorafleet_common.paths import Json
from lorafleet_contract.adapter_spec import BaseModelRef
from lorafleet_contract.autoscaling import AutoscalingSpec, ScaleToZero
from lorafleet_contract.base import Observed
from lorafleet_contract.names import LABEL_BASE, PUBLIC_PORT
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import Condition, ObjectMeta
from lorafleet_gateway.reading import read
from lorafleet_gateway.traffic import Traffic, named_revisions, read_traffic

logger = logging.getLogger(__name__)
BaseKey = tuple[str, str]
"""(namespace, name) of a BaseModelDeployment."""
READY: Final = "Ready"
STALLED: Final = "Stalled"
WAS_STABLE: Final = (None, "Promoted")
"""Results in `status.history` of revisions that clients may insist on; others were taken back, or never came to all."""
SPARED_OF_ADAPTERS: Final = (
    ("spec", "source"),
    ("status", "history"),
    ("status", "artifact"),
    ("status", "stableArtifact"),
    ("status", "conditions"),
)
"""What tells of an adapter and does not decide whether and where it answers; so are the others."""
STABLE_REVISION: Final = ("status", "stableRevision")
SERVED_NAME: Final = ("status", "servedName")
SPARED_OF_BASES: Final = (("spec", "model"), ("spec", "lora"), ("status", "autoscaling"))
SPARED_OF_SLICES: Final = (("endpoints",),)


@dataclass(frozen=True, slots=True)
class BaseView:
    """A BaseModelDeployment."""

    uid: str
    key: BaseKey
    name: str | None
    """What requests put into `model`; None when another resource has the name."""
    created: datetime
    root: str
    """Where the model comes from."""
    loads_on_demand: bool
    is_leaving: bool
    allows_ad_hoc: bool = False
    """Whether requests may name adapters that nobody declared."""
    zero: ScaleToZero | None = None
    """How it does without pods while nothing is asked; None: it always has some."""
    is_at_zero: bool = False
    """Whether no pod is asked for."""


@dataclass(frozen=True, slots=True)
class AdapterView:
    """A LoraAdapter."""

    uid: str
    base_key: BaseKey
    name: str | None
    created: datetime
    root: str
    pinnable: frozenset[str]
    """Revisions that its status shows as served now or before: what clients may insist on."""
    revision: str | None
    """The stable one: what the bare name means where `traffic` is empty."""
    traffic: Traffic
    """Who shares the bare name's requests while a rollout runs."""
    invocation_tokens: tuple[int, ...] | None
    """Those of the stable one, where it is an activated adapter."""
    is_refused: bool
    """Nothing will change by itself."""
    problem: str
    """Why it is not Ready, `Reason: message`; empty when it is."""
    is_leaving: bool
    asks_pods: bool = False
    """Its stable revision cannot be read: it is the one that pods of the base call stable, else `revision`, which was the last one."""


Named = BaseView | AdapterView


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One pod in an EndpointSlice."""

    uid: str
    pod: str
    url: str
    is_ready: bool


@dataclass(frozen=True, slots=True)
class SliceView:
    """An EndpointSlice of a base."""

    uid: str
    base_key: BaseKey
    endpoints: tuple[Endpoint, ...]


class _Meta(ObjectMeta):
    creation_timestamp: datetime


class _AdapterSource(Observed):
    repo: str | None = None
    path: str | None = None


class _AdapterSpec(Observed):
    base_model_ref: BaseModelRef
    source: _AdapterSource = _AdapterSource()


class _Revision(Observed):
    revision: str
    result: str | None = None
    """What came of its rollout."""


class _Artifact(Observed):
    invocation_tokens: tuple[int, ...] | None = None


class _AdapterStatus(Observed):
    served_name: str | None = None
    stable_revision: str | None = None
    history: list[_Revision] = []
    traffic: Any = None
    """Read apart: an entry that cannot be read does not take the adapter out of service."""
    artifact: _Artifact | None = None
    stable_artifact: _Artifact | None = None
    """There while `artifact` is of another revision."""
    conditions: list[Condition] = []


class _Adapter(Observed):
    """What is read of a LoraAdapter: no more, so that a newer spec does not take its adapter out of service."""

    metadata: _Meta
    spec: _AdapterSpec
    status: _AdapterStatus = _AdapterStatus()


class _Hub(Observed):
    repo: str = ""


class _Volume(Observed):
    claim_name: str = ""
    path: str = ""


class _Model(Observed):
    hugging_face: _Hub | None = None
    volume: _Volume | None = None


class _Lora(Observed):
    load_on_demand: str = "Enabled"
    ad_hoc: str = "Forbidden"


class _BaseSpec(Observed):
    model: _Model = _Model()
    lora: _Lora = _Lora()
    autoscaling: Any = None
    """Read apart: what a newer version writes does not take the base out of service."""


class _Scaled(Observed):
    desired_replicas: int | None = None


class _BaseStatus(Observed):
    served_name: str | None = None
    autoscaling: _Scaled = _Scaled()


class _Base(Observed):
    metadata: _Meta
    spec: _BaseSpec = _BaseSpec()
    status: _BaseStatus = _BaseStatus()


class _Conditions(Observed):
    ready: bool | None = None
    terminating: bool | None = None


class _TargetRef(Observed):
    kind: str = ""
    name: str = ""
    uid: str = ""


class _Endpoint(Observed):
    addresses: list[str]
    conditions: _Conditions = _Conditions()
    target_ref: _TargetRef = _TargetRef()


class _Port(Observed):
    name: str | None = None
    port: int | None = None


class _Slice(Observed):
    metadata: _Meta
    address_type: str = "IPv4"
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


def adapter_view(body: Json) -> AdapterView:
    """Read a LoraAdapter.

    Raises:
        Unreadable: who answers for it cannot be read.
    """
    return _adapter_view(read(_Adapter, body, SPARED_OF_ADAPTERS))


def salvaged_adapter(body: Json, last: AdapterView | None) -> AdapterView | None:
    """Return what goes on of a LoraAdapter that cannot be read, beside its last view; None: nothing.

    Its name and its base are the API server's to say: a pod runs its owner's image, and says of whichever name it likes that it
    has it. Which revision of a name that is its own is the stable one, pods say as well.
    """
    try:
        rest = _adapter_view(read(_Adapter, body, (*SPARED_OF_ADAPTERS, STABLE_REVISION)))
    except Unreadable:
        return last
    return replace(rest, revision=None if last is None else last.revision, asks_pods=True)


def _adapter_view(adapter: _Adapter) -> AdapterView:
    ref, status, meta = adapter.spec.base_model_ref, adapter.status, adapter.metadata
    ready = next((c for c in status.conditions if c.type == READY), None)
    problem = "" if ready is None or ready.status == "True" else f"{ready.reason}: {ready.message}"
    artifact = status.stable_artifact or status.artifact
    return AdapterView(
        uid=meta.uid,
        base_key=(ref.namespace or meta.namespace, ref.name),
        name=status.served_name,
        created=meta.creation_timestamp,
        root=adapter.spec.source.repo or adapter.spec.source.path or "",
        revision=status.stable_revision,
        invocation_tokens=None if artifact is None else artifact.invocation_tokens,
        traffic=read_traffic(status.traffic, stable=status.stable_revision),
        pinnable=named_revisions(status.traffic)
        | {one.revision for one in status.history if one.result in WAS_STABLE}
        | {status.stable_revision or ""} - {""},
        # a revision that is late may still come
        is_refused=any(
            c.type == STALLED and c.status == "True" and c.reason != Reason.PROGRESS_DEADLINE_EXCEEDED
            for c in status.conditions
        ),
        problem=problem,
        is_leaving=meta.deletion_timestamp is not None,
    )


def base_view(body: Json) -> BaseView:
    """Read a BaseModelDeployment.

    Raises:
        Unreadable: what answers for it cannot be read.
    """
    return _base_view(read(_Base, body, SPARED_OF_BASES))


def salvaged_base(body: Json, last: BaseView | None) -> BaseView | None:
    """Return what goes on of a BaseModelDeployment that cannot be read, beside its last view; None: nothing.

    A name that cannot be read is the one that it had last, or none: its adapters are served all the same.
    """
    try:
        rest = _base_view(read(_Base, body, (*SPARED_OF_BASES, SERVED_NAME)))
    except Unreadable:
        return last
    return replace(rest, name=None if last is None else last.name)


def _base_view(base: _Base) -> BaseView:
    meta, model = base.metadata, base.spec.model
    volume = model.volume or _Volume()
    return BaseView(
        uid=meta.uid,
        key=(meta.namespace, meta.name),
        name=base.status.served_name,
        created=meta.creation_timestamp,
        root=model.hugging_face.repo if model.hugging_face else f"{volume.claim_name}/{volume.path}".rstrip("/"),
        loads_on_demand=base.spec.lora.load_on_demand == "Enabled",
        allows_ad_hoc=base.spec.lora.ad_hoc == "Sources",
        zero=_zero_of(base),
        is_at_zero=base.status.autoscaling.desired_replicas == 0,
        is_leaving=meta.deletion_timestamp is not None,
    )


def _zero_of(base: _Base) -> ScaleToZero | None:
    if base.spec.autoscaling is None:
        return None
    try:
        return AutoscalingSpec.model_validate(base.spec.autoscaling).zero
    except ValidationError as error:
        meta = base.metadata
        logger.warning("cannot read spec.autoscaling of %s/%s: %s", meta.namespace, meta.name, error)
        return None


def slice_view(body: Json) -> SliceView | None:
    """Read an EndpointSlice with the label of a base; None when it has no such label.

    Raises:
        Unreadable: which base it is of, or at which port, cannot be read.
    """
    found = read(_Slice, body, SPARED_OF_SLICES)
    if LABEL_BASE not in found.metadata.labels or found.address_type not in ("IPv4", "IPv6"):
        return None
    port = next((p.port for p in found.ports or [] if p.name == "http" and p.port), PUBLIC_PORT)
    return SliceView(
        uid=found.metadata.uid,
        base_key=(found.metadata.namespace, found.metadata.labels[LABEL_BASE]),
        endpoints=tuple(_endpoint(endpoint, port) for endpoint in found.endpoints or [] if endpoint.addresses),
    )


def _endpoint(endpoint: _Endpoint, port: int) -> Endpoint:
    address = endpoint.addresses[0]
    host = f"[{address}]" if ":" in address else address
    conditions = endpoint.conditions
    return Endpoint(
        uid=endpoint.target_ref.uid or f"{address}:{port}",
        pod=endpoint.target_ref.name or address,
        url=f"http://{host}:{port}",
        # a Service that publishes addresses of pods that are not ready calls leaving ones ready too
        is_ready=conditions.ready is not False and not conditions.terminating,
    )
