"""The line-ups of a base. Those of adapters that stand still are what they were: most of a large base in most passes. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from lorafleet_contract.base_spec import BaseModelSpec
from lorafleet_contract.resources import AdapterResource
from lorafleet_operator.decide.accept import guest_limits
from lorafleet_operator.decide.catalogue import AdapterRevisions
from lorafleet_operator.decide.intent import NO_VERDICTS, Resolutions, intent_of
from lorafleet_operator.decide.rollout import target_of
from lorafleet_operator.decide.verify import Verdict, VerifyKey
from lorafleet_operator.decide.views import ObservedPod, Snapshot


class LineupMemory:
    """Line-ups of the last pass that are made of nothing but an adapter, the spec of its base, and who has its name."""

    def __init__(self) -> None:
        self.spec: BaseModelSpec | None = None
        self.known: dict[str, tuple[AdapterResource, datetime | None, AdapterRevisions]] = {}
        """Uid -> the adapter, since when its status is published, and what came of it."""


def lineups_of(
    snapshot: Snapshot,
    pods: Sequence[ObservedPod],
    resolutions: Resolutions,
    verdicts: Mapping[VerifyKey, Verdict] = NO_VERDICTS,
    memory: LineupMemory | None = None,
) -> tuple[AdapterRevisions, ...]:
    """Return what pods should know of each adapter of a base; `memory` is of the last pass."""
    memory, base, observed = memory or LineupMemory(), snapshot.base, tuple(pods)
    refused = base is not None and base.spec.lora.load_on_demand == "Disabled"
    before = memory.known if base is not None and base.spec == memory.spec else {}
    memory.spec, memory.known = base.spec if base is not None else None, {}
    lineups = []
    for adapter in snapshot.adapters:
        uid = adapter.metadata.uid
        published_at, last = snapshot.published_at.get(uid), before.get(uid)
        if last is not None and last[0] is adapter and last[1] == published_at and _owns_name(adapter, snapshot):
            memory.known[uid] = last
            lineups.append(last[2])
            continue
        intent = intent_of(adapter, snapshot, observed, resolutions, verdicts)
        lineup = AdapterRevisions(
            intent,
            target_of(intent, observed),
            is_on_demand_refused=refused,
            guest=guest_limits(adapter, base) if base is not None else None,
        )
        if base is not None and _stands_still(lineup):
            memory.known[uid] = (adapter, published_at, lineup)
        lineups.append(lineup)
    return tuple(lineups)


def _owns_name(adapter: AdapterResource, snapshot: Snapshot) -> bool:
    claim = snapshot.claims.get(adapter.served_name)
    return claim is None or claim.uid == adapter.metadata.uid


def _stands_still(lineup: AdapterRevisions) -> bool:
    """Whether no pod and no answer of one was asked for it: status says what is desired, and that it is published."""
    intent = lineup.intent
    status, desired = intent.adapter.status, intent.desired
    if intent.refusal is not None or not intent.owns_name or intent.verdict is not None or desired is None:
        return False
    is_published = desired.revision == status.stable_revision == intent.published == lineup.target
    return is_published and desired is status.artifact and intent.stable is desired
