"""Short ways to the operator's views: a base, adapters, pods and what pods say."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from lorafleet_contract.admin import (
    AdapterState,
    BaseFacts,
    Budgets,
    ObservedAdapter,
    Owner,
    PodState,
    Residency,
    Tier,
)
from lorafleet_contract.names import revision_of
from lorafleet_contract.resources import AdapterResource, ArtifactStatus, BaseModelResource
from lorafleet_contract.sources import AdapterFacts, ResolvedSource, SourceFile, SourceRef
from lorafleet_operator.decide.views import Claim, ObservedPod, Pod, Snapshot

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
KEY = ("team", "base")
SOURCES = [
    {"name": "models", "volume": {"claimName": "models"}},
    {"name": "bucket", "s3": {"bucket": "adapters"}},
    {"name": "hub", "huggingFace": {"repos": ["acme/*", "solo/one"]}},
]


def base(**spec: Any) -> BaseModelResource:
    """A BaseModelDeployment team/base."""
    full = {"model": {"volume": {"claimName": "models", "path": "numerals"}}, "adapterSources": SOURCES, **spec}
    metadata = {"name": "base", "namespace": "team", "uid": "uid-base", "generation": 3}
    return BaseModelResource.model_validate({"metadata": metadata, "spec": full})


def adapter(
    name: str = "french",
    *,
    namespace: str = "team",
    status: dict[str, Any] | None = None,
    deleted: bool = False,
    **spec: Any,
) -> AdapterResource:
    """A LoraAdapter of it."""
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "generation": 2}
    if deleted:
        metadata |= {"deletionTimestamp": NOW.isoformat(), "finalizers": ["lorafleet.io/unload"]}
    full = {
        "baseModelRef": {"name": "base", "namespace": "team"},
        "source": {"name": "models", "path": name},
        **spec,
    }
    return AdapterResource.model_validate({"metadata": metadata, "spec": full, "status": status or {}})


def digest(content: str) -> str:
    """Digest of some content."""
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def artifact(
    content: str, *, rank: int = 8, path: str | None = None, memory_pages: int | None = None
) -> ArtifactStatus:
    """What a source resolved to."""
    ref = SourceRef(name="models", path=path or content)
    files = [SourceFile(path="adapter_model.safetensors", size_bytes=100 * rank, sha256=digest(content)[7:])]
    facts = AdapterFacts(rank=rank, size_bytes=100 * rank, target_modules=["q_proj"], memory_pages=memory_pages)
    return ArtifactStatus.of(ref, ResolvedSource(ref=ref, digest=digest(content), files=files, facts=facts))


def served(content: str, **more: Any) -> dict[str, Any]:
    """Status of an adapter whose revision answers."""
    made = artifact(content)
    status = {
        "stableRevision": made.revision,
        "artifact": made.model_dump(mode="json", by_alias=True, exclude_none=True),
        "history": [
            {"revision": made.revision, "digest": made.digest, "since": (NOW - timedelta(hours=1)).isoformat()}
        ],
    }
    return {**status, **more}


def pod(
    name: str = "p0",
    *,
    ready: bool = True,
    leaving: bool = False,
    running: bool = True,
    coming_up: bool | None = None,
    template: str = "1",
    age_seconds: float = 60,
    problem: str = "",
    **more: Any,
) -> Pod:
    """A pod as the API server has it."""
    return Pod(
        uid=f"uid-{name}",
        name=name,
        ip="10.0.0.1",
        is_ready=ready,
        is_leaving=leaving,
        is_running=running,
        is_coming_up=not ready if coming_up is None else coming_up,
        template=template,
        created_at=NOW - timedelta(seconds=age_seconds),
        problem=problem,
        **more,
    )


def entry(
    content: str,
    name: str = "french",
    *,
    state: AdapterState = AdapterState.READY,
    residency: Residency = Residency.RESIDENT,
    stable: bool = True,
    owner: Owner = Owner.OPERATOR,
    tier: Tier = Tier.DEVICE,
    **more: Any,
) -> ObservedAdapter:
    """An adapter as a pod has it."""
    found = digest(content)
    given = {"name": name, "revision": revision_of(found), "digest": found, "owner": owner, "residency": residency}
    return ObservedAdapter(**given, stable=stable, state=state, tier=tier, **more)


def seen(
    *entries: ObservedAdapter,
    pod: Pod,
    fence: int = 1,
    slots: int = 8,
    rank_pages: int = 64,
    memory_pages: int | None = None,
    draining: bool = False,
) -> ObservedPod:
    """A pod that answers; one that tells no `memory_pages` is of an older release, where a page has eight ranks."""
    budgets = Budgets(
        max_resident_adapters=slots,
        max_rank=64,
        rank_page=8 if memory_pages is None else 1,
        total_rank_pages=rank_pages,
        used_rank_pages=0,
        memory_pages=memory_pages,
        host_cache_bytes=0,
        host_used_bytes=0,
        disk_cache_bytes=0,
        disk_used_bytes=0,
    )
    state = PodState(
        boot_id="b",
        generation=1,
        fence=fence,
        catalogue_generation=1,
        ready=pod.is_ready,
        draining=draining,
        base=BaseFacts(served_name="base", max_model_len=128, dtype="float32", device="cpu"),
        budgets=budgets,
        adapters=list(entries),
    )
    return ObservedPod(pod, state)


def silent(pod: Pod) -> ObservedPod:
    """A pod that does not answer."""
    return ObservedPod(pod, None)


def snapshot(
    *adapters: AdapterResource,
    base: BaseModelResource | None = None,
    pods: tuple[Pod, ...] = (),
    claims: dict[str, Claim] | None = None,
    orphans_known: bool = True,
) -> Snapshot:
    """What is known of a base; None is a base that is not there."""
    own = {a.served_name: Claim(a.metadata.uid, f"LoraAdapter team/{a.metadata.name}") for a in reversed(adapters)}
    return Snapshot(
        key=KEY,
        base=base,
        adapters=adapters,
        pods=pods,
        claims={**own, **(claims or {})},
        broken=(),
        are_orphans_known=orphans_known,
        now=NOW,
    )
