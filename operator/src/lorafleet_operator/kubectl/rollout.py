"""How an adapter's rollout stands: read off its status. Pure."""

from collections.abc import Iterator
from enum import StrEnum

from lorafleet_contract.base import Wire
from lorafleet_contract.reasons import Reason
from lorafleet_contract.resources import AdapterResource, HistoryEntry
from lorafleet_contract.rollout import RevisionCounts, RolloutPhase, RolloutStatus, TrafficShare
from lorafleet_contract.verify import VerifyResult, VerifyStatus
from lorafleet_operator.decide.conditions import READY, STALLED, condition_of
from lorafleet_operator.kubectl.paint import Colour, Painter, plain
from lorafleet_operator.kubectl.views import AdapterLine, adapter_line


class Stand(StrEnum):
    """Where a rollout stands."""

    DONE = "Done"
    """The revision that spec asks for is the stable one."""
    UNDER_WAY = "UnderWay"
    PAUSED = "Paused"
    """It waits for a person."""
    STALLED = "Stalled"
    """It will not go on by itself: the operator says what is in the way."""
    ROLLED_BACK = "RolledBack"
    """It was given up, and what was stable before serves."""
    UNKNOWN = "Unknown"
    """The operator has not looked at the spec as it is now."""


ENDED = frozenset({Stand.DONE, Stand.STALLED, Stand.ROLLED_BACK})
"""Nothing more happens by itself."""
_COLOURS = {Stand.DONE: Colour.GOOD, Stand.STALLED: Colour.BAD, Stand.ROLLED_BACK: Colour.BAD}


class RolloutView(Wire):
    """The rollout of an adapter."""

    adapter: AdapterLine
    stand: Stand
    traffic: list[TrafficShare]
    """Of the bare name; empty while no revision answers."""
    rollout: RolloutStatus | None
    verify: VerifyStatus | None
    """What came of the questions of `spec.verify`; None while a revision is still to be asked, or there are none."""
    history: list[HistoryEntry]


def stand_of(adapter: AdapterResource) -> Stand:
    """Return where the rollout of what spec asks for stands."""
    status = adapter.status
    ready = condition_of(status.conditions, READY)
    if ready is None or status.observed_generation != adapter.metadata.generation:
        return Stand.UNKNOWN
    phase = status.rollout.phase if status.rollout is not None else None
    if phase is RolloutPhase.ROLLED_BACK:
        return Stand.ROLLED_BACK
    if phase is RolloutPhase.PAUSED:
        return Stand.PAUSED
    stalled = condition_of(status.conditions, STALLED)
    is_stalled = stalled is not None and stalled.status == "True"
    if is_stalled or (ready.status != "True" and ready.reason == Reason.SUSPENDED):
        return Stand.STALLED
    is_stable = status.desired_revision is not None and status.desired_revision == status.stable_revision
    return Stand.DONE if is_stable else Stand.UNDER_WAY


def rollout_view(adapter: AdapterResource) -> RolloutView:
    """Return the rollout of an adapter."""
    status = adapter.status
    whole = [TrafficShare(revision=status.stable_revision, weight=100)] if status.stable_revision is not None else []
    return RolloutView(
        adapter=adapter_line(adapter),
        stand=stand_of(adapter),
        traffic=whole if status.traffic is None else status.traffic,
        rollout=status.rollout,
        verify=status.verify,
        history=status.history,
    )


def rollout_lines(view: RolloutView, painter: Painter) -> Iterator[str]:
    """Yield a rollout as text for people."""
    line, rollout = view.adapter, view.rollout
    title = painter.paint(f"LoraAdapter {line.namespace}/{line.name}", Colour.STRONG)
    stand = painter.paint(view.stand, _COLOURS.get(view.stand, Colour.WAITING))
    yield f"{title}  {stand}: {line.standing.reason}: {plain(line.standing.message)}"
    if rollout is not None:
        yield f"  revision {rollout.revision} since {rollout.start_time:%Y-%m-%d %H:%M:%S} UTC{_steps(rollout)}"
        yield (
            f"  ready on up to {rollout.ready_pods} pods; "
            f"last progress {rollout.last_progress_time:%Y-%m-%d %H:%M:%S} UTC"
        )
        yield from _evidence(rollout)
    if view.verify is not None:
        yield _verified(view.verify, painter)
    for share in view.traffic:
        role = "stable" if share.revision == line.stable_revision else "canary"
        yield f"  {share.weight:3} % of requests go to {share.revision}, {role}"
    if not view.traffic:
        yield "  no revision answers"
    if view.history:
        yield "  history:"
        for entry in view.history:
            result = f"  {entry.result}" if entry.result is not None else ""
            yield f"    {entry.revision}  {entry.since:%Y-%m-%d %H:%M:%S} UTC{result}"


def rollout_row(view: RolloutView, painter: Painter) -> Iterator[str]:
    """Yield a rollout as one line, for one line a change."""
    line, rollout = view.adapter, view.rollout
    stand = painter.paint(view.stand, _COLOURS.get(view.stand, Colour.WAITING))
    shares = ", ".join(f"{share.revision} {share.weight} %" for share in view.traffic) or "no revision answers"
    steps = _steps(rollout) if rollout is not None else ""
    yield f"{stand}{steps}: {shares}; {line.standing.reason}: {plain(line.standing.message)}"


def _steps(rollout: RolloutStatus) -> str:
    if rollout.phase is None:
        return ""
    step = rollout.step_index
    at = (
        f", step {min(step + 1, rollout.num_steps)} of {rollout.num_steps}"
        if step is not None and rollout.num_steps
        else ""
    )
    why = f" ({plain(': '.join(part for part in (rollout.reason, rollout.message) if part))})" if rollout.reason else ""
    return f", {rollout.phase}{at}{why}"


def _verified(verify: VerifyStatus, painter: Painter) -> str:
    colour = Colour.GOOD if verify.result is VerifyResult.PASSED else Colour.BAD
    check = plain(": ".join(part for part in (verify.check, verify.message) if part))
    why = f", check {check}" if check else ""
    asked = f"{verify.time:%Y-%m-%d %H:%M:%S} UTC"
    return f"  verify {painter.paint(verify.result, colour)} by revision {verify.revision}, {asked}{why}"


def _evidence(rollout: RolloutStatus) -> Iterator[str]:
    found = rollout.evidence
    if found is None:
        return
    heard = f"{found.gateways - found.silent_gateways} of {found.gateways} gateways"
    window = f"{found.since:%H:%M:%S} to {found.until:%H:%M:%S} UTC"
    yield f"  judged {found.judgement} by {heard}, {window}: {plain(found.message)}"
    yield f"    canary  {_counts(found.canary)}"
    yield f"    stable  {_counts(found.stable)}"
    if rollout.failures:
        yield f"    {rollout.failures} windows were judged bad"


def _counts(counts: RevisionCounts) -> str:
    p95 = f", p95 {counts.p95_milliseconds} ms to the first byte" if counts.p95_milliseconds is not None else ""
    return f"{counts.requests} requests, {counts.faults} faults, {counts.lost} lost{p95}"
