"""What a person decides about the revisions of an adapter, as what is written on it. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lorafleet_contract.base import Wire
from lorafleet_contract.names import ANNOTATION_ABORT, ANNOTATION_PROMOTE
from lorafleet_contract.resources import AdapterResource, HistoryEntry
from lorafleet_contract.rollout import RolloutPhase, RolloutStatus
from lorafleet_operator.decide.canary import HOLDING
from lorafleet_operator.kubectl.errors import NothingToDecide
from lorafleet_operator.kubectl.paint import Colour, Painter


@dataclass(frozen=True, slots=True)
class Decision:
    """What is written on the adapter."""

    annotations: Mapping[str, str | None]
    """None: taken away."""
    is_spent: bool = False
    """The same value answered an earlier try: it has to be taken away first, and the operator has to see that."""


class DecisionView(Wire):
    """The answer of `promote` and `abort`."""

    namespace: str
    name: str
    revision: str
    annotation: str
    value: str


def promotion_of(adapter: AdapterResource, *, is_full: bool) -> tuple[Decision, DecisionView]:
    """Return how the revision is promoted: past the step that waits, or past all with `is_full`.

    Raises:
        NothingToDecide: no step waits for a person.
    """
    rollout = _rollout(adapter)
    if not is_full and (rollout.phase is not RolloutPhase.PAUSED or rollout.reason in HOLDING):
        raise NothingToDecide(
            f"no step of {_title(adapter)} waits for a person: {_stand(rollout)}; --full goes past all steps"
        )
    if rollout.phase is RolloutPhase.PROMOTING:
        raise NothingToDecide(f"{_title(adapter)} is being promoted: {_stand(rollout)}")
    value = rollout.revision if is_full else f"{rollout.revision}:{rollout.step_index or 0}"
    aborted = adapter.metadata.annotations.get(ANNOTATION_ABORT) == rollout.revision  # else it would win
    annotations = {ANNOTATION_PROMOTE: value, **({ANNOTATION_ABORT: None} if aborted else {})}
    decision = Decision(annotations, is_spent=rollout.spent_promotion == value)
    return decision, _view(adapter, rollout, ANNOTATION_PROMOTE, value)


def abort_of(adapter: AdapterResource) -> tuple[Decision, DecisionView]:
    """Return how the rollout is given up; a promotion goes too, so that it does not come back with the end of that.

    Raises:
        NothingToDecide: it is given up.
    """
    rollout = _rollout(adapter)
    if rollout.phase is RolloutPhase.ROLLED_BACK:
        raise NothingToDecide(f"the rollout of {_title(adapter)} is given up: {_stand(rollout)}")
    promoted = ANNOTATION_PROMOTE in adapter.metadata.annotations
    annotations = {ANNOTATION_ABORT: rollout.revision, **({ANNOTATION_PROMOTE: None} if promoted else {})}
    return Decision(annotations), _view(adapter, rollout, ANNOTATION_ABORT, rollout.revision)


def undone(adapter: AdapterResource, revision: str | None) -> HistoryEntry:
    """Return the revision that spec asks for again: the stable one where another is wanted, else the one before it.

    Args:
        adapter: which one.
        revision: one of its history; None chooses.

    Raises:
        NothingToDecide: there is none, or it is not known where it came from.
    """
    status = adapter.status
    is_stable_wanted = status.stable_revision is not None and status.desired_revision != status.stable_revision

    def is_meant(entry: HistoryEntry) -> bool:
        if revision is not None:
            return entry.revision == revision
        return entry.was_stable and (entry.revision == status.stable_revision) == is_stable_wanted

    found = next((entry for entry in status.history if is_meant(entry)), None)
    if found is None:
        which = f"revision {revision}" if revision is not None else "revision to go back to"
        raise NothingToDecide(f"the history of {_title(adapter)} has no {which}")
    if found.source is None:
        raise NothingToDecide(f"it is not known where revision {found.revision} of {_title(adapter)} came from")
    return found


def source_of(entry: HistoryEntry) -> dict[str, str | None]:
    """Return the source of a revision as spec has it, the commit named; None for what it lacks."""
    assert entry.source is not None
    given = entry.source.model_dump(by_alias=True)
    return {**given, "revision": entry.resolved_revision or given["revision"]} if given["repo"] else given


class UndoView(Wire):
    """The answer of `undo`."""

    namespace: str
    name: str
    revision: str
    source: dict[str, str]
    digest: str | None
    """What was written into spec; None: spec had none, and has none."""


def undo_lines(view: UndoView, painter: Painter) -> Iterator[str]:
    """Yield what was written, for people."""
    title = painter.paint(f"LoraAdapter {view.namespace}/{view.name}", Colour.STRONG)
    source = ", ".join(f"{name}: {value}" for name, value in view.source.items())
    yield f"{title}  asks for revision {view.revision} again: source {{{source}}}"


def decision_lines(view: DecisionView, painter: Painter) -> Iterator[str]:
    """Yield what was written, for people."""
    title = painter.paint(f"LoraAdapter {view.namespace}/{view.name}", Colour.STRONG)
    yield f"{title}  {view.annotation}={view.value}"


def _rollout(adapter: AdapterResource) -> RolloutStatus:
    rollout = adapter.status.rollout
    if rollout is None or rollout.phase is None:
        raise NothingToDecide(f"{_title(adapter)} has no rollout by steps under way")
    return rollout


def _view(adapter: AdapterResource, rollout: RolloutStatus, annotation: str, value: str) -> DecisionView:
    meta = adapter.metadata
    return DecisionView(
        namespace=meta.namespace, name=meta.name, revision=rollout.revision, annotation=annotation, value=value
    )


def _title(adapter: AdapterResource) -> str:
    return f"LoraAdapter {adapter.metadata.namespace}/{adapter.metadata.name}"


def _stand(rollout: RolloutStatus) -> str:
    return f"{rollout.phase}: {rollout.message or ''}"
